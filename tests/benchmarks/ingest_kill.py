"""Stages killed at random instants, then run again: python -m tests.benchmarks.ingest_kill [--stages ...] [--nights first late] [--kills 20]

Each victim is a process of its own (`python -m llm_spark.cli STAGE`) on a copy of the warehouse as it stood before the stage. It is killed
with SIGKILL, driver and JVM, after a random part of the time that the stage takes once it has begun to work; every fourth time instead its
Python workers alone are killed, again and again. Then the stage is run once more, and each of its tables must equal a clean run's, row for
row, but for run ids and times. Two nights are tried so: the first of nine tenths of the records, the second of the others, which are late events
of all users and days. Ends with one JSON line: kills that struck while the stage worked, and reruns that differed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark import spark as spark_room
from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import (
    EVENT_TYPES,
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    SEQUENCES,
    SESSIONS,
    SESSIONS_SET_ASIDE,
    VOCABULARY,
    Table,
)
from llm_spark.tables.warehouse import Warehouse
from tests.killing import SMALL_SPARK, Victim, kill_workers, settings_file, table_rows

WRITES: dict[str, tuple[Table, ...]] = {
    "ingest": (EVENTS, EVENTS_REJECTED, INGESTED_FILES),
    "sessionize": (SESSIONS, SESSIONS_SET_ASIDE),
    "sequences": (VOCABULARY, EVENT_TYPES, SEQUENCES),
}
NIGHTS = ("first", "late")
_ONE_LATE_IN = 10
"""So few of the records come on the second night that sessionize is incremental."""
_BOTS = "sessionize: {bots: {max_events: 12}}\n"
"""Some sessions are longer."""
_POLL_SECONDS = 0.005


def hold_back(logs: Path, folder: Path) -> None:
    """Move one line in so many of each raw file to one of its own in `folder`."""
    folder.mkdir()
    for file in logs.glob("*.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        (folder / f"late-{file.name}").write_bytes(b"".join(lines[::_ONE_LATE_IN]))
        file.write_bytes(b"".join(line for place, line in enumerate(lines) if place % _ONE_LATE_IN))


class StageVictim(Victim):
    """A stage, which says in its log that it has begun to work."""

    def has_begun(self) -> bool:
        """It has said what it does: Spark is up."""
        return any(word in self.log.read_text() for word in ("ingest: reading", "sessionize ...", "sequences: "))


def strike(stage: str, number: int, config_file: Path, warehouse: Path, seconds: float, dice: random.Random) -> str:
    """Let a victim run and kill it; says what was struck, or an empty text where it had ended."""
    victim = StageVictim(stage, config_file, warehouse)
    if not _wait(victim.has_begun, victim):
        return ""
    if stage != "ingest" and number % 4 == 3:
        killed = kill_workers(until=lambda: not victim.is_alive(), ancestor=victim.pid)
        return f"{killed} Python workers" if killed else ""
    instant = time.monotonic() + dice.uniform(0, seconds)
    return "the driver" if victim.kill_when(lambda: time.monotonic() >= instant) else ""


def _wait(condition: Callable[[], bool], victim: StageVictim) -> bool:
    while not condition():
        if not victim.is_alive():
            return False
        time.sleep(_POLL_SECONDS)
    return True


def try_stage(
    spark: SparkSession, stage: str, num_kills: int, config: Config, config_file: Path, before: Path, folder: Path
) -> tuple[int, int]:
    """Kill and rerun until `num_kills` struck; returns how many did and how many reruns differed. `before` then holds the clean run.

    `folder` is empty, for the copies.
    """
    pristine = folder / "before"
    if before.exists():
        shutil.copytree(before, pristine)
    timed = folder / "timed"
    if pristine.exists():
        shutil.copytree(pristine, timed)
    victim = StageVictim(stage, config_file, timed)
    _wait(victim.has_begun, victim)
    began = time.monotonic()
    assert victim.wait() == 0, victim.log.read_text()
    seconds = time.monotonic() - began
    clean = Warehouse(spark, str(before))
    run_stage(stage, clean, config)
    expected = table_rows(clean, *WRITES[stage])
    dice, num_struck, num_different, number = random.Random(0), 0, 0, 0
    while num_struck < num_kills and number < 3 * num_kills:
        target = folder / str(number)
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
    parser.add_argument("--nights", nargs="+", choices=NIGHTS, default=list(NIGHTS))
    parser.add_argument("--kills", type=int, default=20, help="of each stage in each night")
    parser.add_argument("--users", type=int, default=300)
    given = parser.parse_args()
    spark = spark_room.session(SMALL_SPARK, "ingest_kill")
    result: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config_file = settings_file(folder, given.users)
        with config_file.open("a") as file:
            file.write(_BOTS)
        hold_back(folder / "logs", folder / "late")
        before = folder / "clean"
        config = settings.load(config_file, [f"warehouse={before}"], ("ingest",))
        for night in NIGHTS:
            if night == "late":
                for file in (folder / "late").iterdir():
                    file.rename(folder / "logs" / file.name)
            for stage in WRITES:
                if stage in given.stages and night in given.nights:
                    copies = folder / f"{night}-{stage}"
                    copies.mkdir()
                    struck, different = try_stage(spark, stage, given.kills, config, config_file, before, copies)
                    result[f"{stage}, {night} night"] = {"struck": struck, "different": different}
                else:
                    run_stage(stage, Warehouse(spark, str(before)), config)
        set_aside = Warehouse(spark, str(before)).read(SESSIONS_SET_ASIDE).count()
        assert set_aside, "no session was set aside: that table was not tried"
    spark.stop()
    print(json.dumps({"benchmark": "ingest_kill", **result}))
    return int(any(counts["different"] for counts in result.values()))


if __name__ == "__main__":
    sys.exit(main())
