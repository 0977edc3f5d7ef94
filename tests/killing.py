"""Commands as processes of their own, to be killed; what they work on, and how their tables are compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_spark.config import SparkConfig
from llm_spark.schemas import Table
from llm_spark.simulation import SimulationConfig, write_logs
from llm_spark.tables.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[1]
SMALL_JVM = ["spark.java_options=-XX:TieredStopAtLevel=1", "spark.driver_memory=1g", "spark.shuffle_partitions=2"]
SMALL_SPARK = SparkConfig(driver_memory="1g", java_options="-XX:TieredStopAtLevel=1", shuffle_partitions=2)
OF_THE_RUN = ("run_id", "ingested_at")
"""Columns that differ from run to run."""
POLL_SECONDS = 0.002


def settings_file(folder: Path, num_users: int, logs: Path | None = None) -> Path:
    """Settings for simulated logs, which lie in `folder` unless others are given."""
    if logs is None:
        logs = folder / "logs"
        write_logs(SimulationConfig(num_users=num_users, num_days=8), logs, "jsonl")
    file = folder / "settings.yaml"
    file.write_text(
        f"""
ingest:
  paths: ["{logs}"]
  format: jsonl
  columns: {{user: user, item: item, time: time, type: type, value: value, attributes: {{agent: agent}}}}
  filters: ["NOT coalesce(agent, '') LIKE '%bot%'"]
sequences: {{min_item_count: 1}}
"""
    )
    return file


class Victim:
    """`llm-spark COMMAND` on a warehouse, in a session of its own."""

    def __init__(self, command: str, config_file: Path, warehouse: Path, *overrides: str) -> None:
        self.warehouse = warehouse
        self.log = warehouse.parent / f"{warehouse.name}.log"
        words = [sys.executable, "-m", "llm_spark.cli", command, "--config", str(config_file), f"warehouse={warehouse}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*words, *SMALL_JVM, *overrides], stderr=log, stdout=log, start_new_session=True, cwd=ROOT
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill_when(self, is_time: Callable[[], bool], and_children: bool = True) -> bool:
        """SIGKILL the driver, and at the same time its JVM, workers and ranks or not, once `is_time`; False where it had ended before."""
        while not is_time():
            if not self.is_alive():
                return False
            time.sleep(POLL_SECONDS)
        self._kill(and_children)
        return self._process.wait() == -signal.SIGKILL

    def wait(self, timeout_seconds: float | None = None) -> int:
        """The exit code. A command that has not ended by then is killed with all below it: the code is -SIGKILL."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._kill(and_children=True)
            return self._process.wait()

    def _kill(self, and_children: bool) -> None:
        for pid in [*(descendants(self.pid) if and_children else []), self.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def descendants(ancestor: int) -> list[int]:
    """All processes below `ancestor`, whatever session they have moved to."""
    parents = _parents()
    return [pid for pid in parents if pid != ancestor and _is_below(pid, ancestor, parents)]


def python_workers(ancestor: int) -> list[int]:
    """Processes forked by the pyspark daemon below `ancestor`."""
    parents, daemons = _parents(), set()
    for pid in parents:
        try:
            if b"pyspark.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                daemons.add(pid)
        except OSError:
            continue
    return [pid for pid in daemons if parents.get(pid) in daemons and _is_below(pid, ancestor, parents)]


def kill_workers(until: Callable[[], bool], ancestor: int | None = None) -> int:
    """SIGKILL every Python worker below this process (or `ancestor`) as it appears, until the condition holds; returns how many."""
    killed: set[int] = set()
    while not until():
        for pid in python_workers(ancestor or os.getpid()):
            if pid not in killed:
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                except ProcessLookupError:
                    continue
        time.sleep(POLL_SECONDS)
    return len(killed)


def table_rows(
    warehouse: Warehouse, *tables: Table, without: tuple[str, ...] = (), num_digits: int | None = None
) -> dict[str, list[str]]:
    """Every row of the tables as text, sorted, but for what differs from run to run; numbers to so many digits, or to the bit."""
    found = {}
    for table in tables:
        kept = [field.name for field in table.schema.fields if field.name not in (*OF_THE_RUN, *without)]
        rows = warehouse.read(table).select(*kept).collect()
        found[table.name] = sorted(_text(tuple(row), num_digits) for row in rows)
    return found


def without_speeds(training_metrics: list[str]) -> list[str]:
    """The rows as text, but for what was measured in seconds."""
    return [row for row in training_metrics if "'tokens_per_second'" not in row]


def _text(value: Any, num_digits: int | None) -> str:
    if num_digits is None:
        return repr(value)
    if isinstance(value, float):
        return f"{value:.{num_digits}g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(part, num_digits) for part in value)}]"
    return repr(value)


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    return parents


def _is_below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor
