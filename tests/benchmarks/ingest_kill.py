"""Stages killed at random instants, then run again: python -m tests.benchmarks.ingest_kill [--stages ingest sessionize sequences] [--kills 20]

Each victim is a process of its own (`python -m llm_spark.cli STAGE`) on a copy of the warehouse as it stood before the stage. It is killed
with SIGKILL, driver and JVM, after a random part of the time that the stage takes once it has begun to work; every fourth time instead its
Python workers alone are killed, again and again. Then the stage is run once more, and each of its tables must equal a clean run's, row for
row, but for run ids and times. Ends with one JSON line: kills that struck while the stage worked, and reruns that differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark import spark as spark_room
from llm_spark.config import Config, SparkConfig
from llm_spark.errors import UserError
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import (
    EVENT_TYPES,
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    SEQUENCES,
    SESSIONS,
    VOCABULARY,
    Table,
)
from llm_spark.simulation import SimulationConfig, write_logs
from llm_spark.tables.warehouse import Warehouse

WRITES: dict[str, tuple[Table, ...]] = {
    "ingest": (EVENTS, EVENTS_REJECTED, INGESTED_FILES),
    "sessionize": (SESSIONS,),
    "sequences": (VOCABULARY, EVENT_TYPES, SEQUENCES),
}
OF_THE_RUN = ("run_id", "ingested_at")
_POLL_SECONDS = 0.005


def table_rows(warehouse: Warehouse, *tables: Table, without: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Every row of the tables as text, sorted, but for what differs from run to run."""
    found = {}
    for table in tables:
        kept = [field.name for field in table.schema.fields if field.name not in (*OF_THE_RUN, *without)]
        found[table.name] = sorted(repr(tuple(row)) for row in warehouse.read(table).select(*kept).collect())
    return found


class Victim:
    """A stage in a process group of its own."""

    def __init__(self, stage: str, config_file: Path, warehouse: Path) -> None:
        self.log = warehouse.parent / f"{warehouse.name}.log"
        command = [sys.executable, "-m", "llm_spark.cli", stage, "--config", str(config_file), f"warehouse={warehouse}"]
        java = ["spark.java_options=-XX:TieredStopAtLevel=1", "spark.driver_memory=1g"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([*command, *java], stderr=log, stdout=log, start_new_session=True)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def has_begun(self) -> bool:
        """It has said what it does: Spark is up."""
        return any(word in self.log.read_text() for word in ("ingest: reading", "sessionize ...", "sequences: "))

    def kill_when(self, struck: Callable[[], bool]) -> bool:
        """SIGKILL as soon as `struck` holds; False where the victim ended before."""
        while not struck():
            if not self.is_alive():
                return False
            time.sleep(_POLL_SECONDS)
        return self.kill()

    def kill(self) -> bool:
        alive = self.is_alive()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return alive

    def wait(self) -> int:
        return self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid


def python_workers(ancestor: int) -> list[int]:
    """Processes forked by the pyspark daemon below `ancestor`."""
    parents: dict[int, int] = {}
    daemons: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if b"pyspark.daemon" in (entry / "cmdline").read_bytes():
                daemons.add(int(entry.name))
        except OSError:
            continue

    def is_below(pid: int) -> bool:
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        return pid == ancestor

    return [pid for pid in daemons if parents.get(pid) in daemons and is_below(pid)]


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
        time.sleep(_POLL_SECONDS)
    return len(killed)


def settings_file(folder: Path, num_users: int) -> Path:
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


def strike(stage: str, number: int, config_file: Path, warehouse: Path, seconds: float, dice: random.Random) -> str:
    """Let a victim run and kill it; says what was struck, or an empty text where it had ended."""
    victim = Victim(stage, config_file, warehouse)
    if not _wait(victim.has_begun, victim):
        return ""
    if stage != "ingest" and number % 4 == 3:
        killed = kill_workers(until=lambda: not victim.is_alive(), ancestor=victim.pid)
        return f"{killed} Python workers" if killed else ""
    instant = time.monotonic() + dice.uniform(0, seconds)
    return "the driver" if victim.kill_when(lambda: time.monotonic() >= instant) else ""


def _wait(condition: Callable[[], bool], victim: Victim) -> bool:
    while not condition():
        if not victim.is_alive():
            return False
        time.sleep(_POLL_SECONDS)
    return True


def try_stage(
    spark: SparkSession, stage: str, num_kills: int, config: Config, config_file: Path, before: Path, folder: Path
) -> tuple[int, int]:
    """Kill and rerun until `num_kills` struck; returns how many did and how many reruns differed. `before` then holds the clean run."""
    pristine = folder / f"before-{stage}"
    if before.exists():
        shutil.copytree(before, pristine)
    timed = folder / f"timed-{stage}"
    if pristine.exists():
        shutil.copytree(pristine, timed)
    victim = Victim(stage, config_file, timed)
    _wait(victim.has_begun, victim)
    began = time.monotonic()
    assert victim.wait() == 0, victim.log.read_text()
    seconds = time.monotonic() - began
    clean = Warehouse(spark, str(before))
    run_stage(stage, clean, config)
    expected = table_rows(clean, *WRITES[stage])
    dice, num_struck, num_different, number = random.Random(0), 0, 0, 0
    while num_struck < num_kills and number < 3 * num_kills:
        target = folder / f"{stage}-{number}"
        if pristine.exists():
            shutil.copytree(pristine, target)
        struck = strike(stage, number, config_file, target, seconds, dice)
        number += 1
        num_struck += bool(struck)
        survivor = Warehouse(spark, str(target))
        left = sorted(table.name for table in WRITES[stage] if survivor.exists(table))
        try:
            run_stage(stage, survivor, config)
            same = table_rows(survivor, *WRITES[stage]) == expected
        except UserError as error:
            print(f"  the rerun refused: {error}")
            same = False
        num_different += not same
        print(
            f"{stage} {number}: killed {struck or 'nothing, it had ended'}; found {', '.join(left) or 'no table'}; "
            f"rerun {'equals' if same else 'DIFFERS FROM'} the clean run",
            flush=True,
        )
        shutil.rmtree(target, ignore_errors=True)
    return num_struck, num_different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", choices=list(WRITES), default=list(WRITES))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--users", type=int, default=300)
    given = parser.parse_args()
    spark = spark_room.session(
        SparkConfig(driver_memory="1g", java_options="-XX:TieredStopAtLevel=1", shuffle_partitions=2), "ingest_kill"
    )
    result: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config_file = settings_file(folder, given.users)
        before = folder / "clean"
        config = settings.load(config_file, [f"warehouse={before}"], ("ingest",))
        for stage in WRITES:
            if stage in given.stages:
                struck, different = try_stage(spark, stage, given.kills, config, config_file, before, folder)
                result[stage] = {"struck": struck, "different": different}
            else:
                run_stage(stage, Warehouse(spark, str(before)), config)
    spark.stop()
    print(json.dumps({"benchmark": "ingest_kill", **result}))
    return int(any(counts["different"] for counts in result.values()))


if __name__ == "__main__":
    sys.exit(main())
