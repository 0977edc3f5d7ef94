"""Nights killed at random instants, then run again: python -m tests.benchmarks.nightly_kill [--kills 30] [--users 60]

Simulated logs arrive in two lots. A first night trains and scores; a copy of its warehouse then takes a second night, with the second lot, as a
process that nothing disturbs: the reference. Then again and again a night on such a copy is killed with SIGKILL, driver, JVM, Python workers
and ranks at once, at an instant drawn from the time that the undisturbed one took; the next run on the same copy goes on where it stopped and
may be killed in turn, every third copy at most twice. When one ends, every table must equal the reference's row for row, but for times and run
ids, and one more run must find nothing to do. Every fourth copy begins with nothing at all: its first night is the one that is killed. Prints
what was struck and ends with one JSON line: kills by step, nights that ended, those that differed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark import spark as spark_room
from llm_spark.simulation import SimulationConfig
from llm_spark.tables.warehouse import Warehouse
from tests.integration.nights import SETTINGS, SIMULATION, Logs, rows_of
from tests.killing import SMALL_SPARK, Victim

STEPS = ("ingest", "sessionize", "drift", "sequences", "train", "evaluate", "score", "report")
_FIRST, _SECOND = "2025-01-11", "2025-01-13"


def step_of(log: str) -> str:
    """The stage that was at work, by the last line that names one."""
    told = re.findall(rf"^\d\d:\d\d:\d\d ({'|'.join(STEPS)})\b", log, re.MULTILINE)
    return told[-1] if told else "start"


def undisturbed(logs: Logs, warehouse: Path) -> float:
    """Run a night to its end; returns the seconds from its first word on."""
    victim = Victim("nightly", logs.settings_file, warehouse, *SETTINGS)
    _wait_for_its_first_word(victim, 0)
    began = time.monotonic()
    assert victim.wait() == 0, victim.log.read_text()
    return time.monotonic() - began


def _wait_for_its_first_word(victim: Victim, at: int) -> None:
    while step_of(victim.log.read_text()[at:]) == "start" and victim.is_alive():
        time.sleep(0.01)


def strike(logs: Logs, warehouse: Path, seconds: float, dice: random.Random) -> str:
    """Kill one run of the night at a random instant; returns the step that was struck, empty where it had ended."""
    log = warehouse.parent / f"{warehouse.name}.log"
    at = len(log.read_text()) if log.exists() else 0
    victim = Victim("nightly", logs.settings_file, warehouse, *SETTINGS)
    _wait_for_its_first_word(victim, at)
    instant = time.monotonic() + dice.uniform(0, seconds)
    if victim.kill_when(lambda: time.monotonic() >= instant):
        return step_of(log.read_text()[at:])
    assert victim.wait() == 0, log.read_text()[at:]
    return ""


def differences(spark: SparkSession, warehouse: Path, expected: dict[str, list[str]]) -> list[str]:
    found = rows_of(Warehouse(spark, str(warehouse)))
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--users", type=int, default=SIMULATION.num_users)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, struck, ended, different = random.Random(given.seed), Counter[str](), 0, 0
    spark = spark_room.session(SMALL_SPARK, "nightly_kill")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulation = SimulationConfig(**{**vars(SIMULATION), "num_users": given.users})
        logs, all_logs = Logs(folder / "two_lots", simulation), Logs(folder / "one_lot", simulation)
        all_logs.arrive(_SECOND)
        logs.arrive(_FIRST)
        undisturbed(logs, folder / "before")
        logs.arrive(_SECOND)
        shutil.copytree(folder / "before", folder / "clean")
        seconds = {False: undisturbed(logs, folder / "clean"), True: undisturbed(all_logs, folder / "first")}
        expected = {
            is_first: rows_of(Warehouse(spark, str(folder / kind)))
            for is_first, kind in ((False, "clean"), (True, "first"))
        }
        print(f"an undisturbed night takes {seconds[False]:.0f} s, a first one {seconds[True]:.0f} s", flush=True)
        while sum(struck.values()) < given.kills:
            is_first, target = ended % 4 == 3, folder / f"killed-{ended}"
            its_logs = all_logs if is_first else logs
            if not is_first:
                shutil.copytree(folder / "before", target)
            num_kills = 0
            while what := strike(its_logs, target, seconds[is_first], dice):
                struck[what] += 1
                num_kills += 1
                print(f"  killed in {what}", flush=True)
                if ended % 3 == 0 and num_kills == 2:
                    undisturbed(its_logs, target)
                    break
            ended += 1
            wrong = differences(spark, target, expected[is_first])
            log = folder / f"{target.name}.log"
            at = len(log.read_text())
            undisturbed(its_logs, target)
            if "nightly: nothing to do" not in log.read_text()[at:]:
                wrong.append("a further run found something to do")
            different += bool(wrong)
            print(
                f"night {ended}{', a first one' if is_first else ''}, killed {num_kills} times: "
                f"{'DIFFERS IN ' + ', '.join(wrong) if wrong else 'equals the undisturbed one'}",
                flush=True,
            )
            shutil.rmtree(target)
    spark.stop()
    print(json.dumps({"benchmark": "nightly_kill", "killed_in": dict(struck), "ended": ended, "different": different}))
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
