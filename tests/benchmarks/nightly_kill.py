"""Nights killed at random instants, then run again: python -m tests.benchmarks.nightly_kill [--kills 30] [--users 60]

Simulated logs arrive in two lots. A first night trains and scores; a copy of its warehouse then takes a second night, with the second lot, as a
process that nothing disturbs: the reference. Then again and again a night on such a copy is killed with SIGKILL, driver, JVM, Python workers
and ranks at once: the first time in the step that was struck least, at an instant drawn from the time that it took undisturbed; the next run on
the same copy goes on where it stopped and is killed in turn, at an instant drawn from the whole night's time, every third copy at most twice.
After each kill `predictions_current` must show every user the list of before the night or the reference's, whole. When a night ends, every
table must equal the reference's row for row, but for times and run ids, and one more run must find nothing to do.

Of four nights one is a second one that trains and replays all histories for its new model, two are second ones that keep the champion and
advance the users with news, and one begins with nothing at all. Goes on until every step was struck, and prints what was; ends with one JSON
line: kills by step, nights that ended, those that differed.
"""

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark import spark as spark_room
from llm_spark.schemas import PREDICTIONS
from llm_spark.simulation import SimulationConfig
from llm_spark.tables.warehouse import Warehouse, sql
from tests.conftest import FOR_FEW_ROWS
from tests.integration.nights import SETTINGS, SIMULATION, Logs, rows_of
from tests.killing import SMALL_SPARK, Victim

STEPS = ("ingest", "sessionize", "drift", "sequences", "train", "evaluate", "score", "report")
AS_FEW_ROWS = [f"spark.conf={json.dumps(FOR_FEW_ROWS)}"]
POLL_SECONDS = 0.01
_FIRST, _SECOND = "2025-01-11", "2025-01-13"


def step_of(log: str) -> str:
    """The stage that was at work, by the last line that names one."""
    told = re.findall(rf"^\d\d:\d\d:\d\d ({'|'.join(STEPS)})\b", log, re.MULTILINE)
    return told[-1] if told else "start"


@dataclass(frozen=True)
class Kind:
    """Nights that begin alike and must end alike."""

    name: str
    logs: Logs
    begin: Path | None
    """The warehouse that each begins with a copy of; None for nothing."""
    settings: tuple[str, ...]

    def make(self, target: Path) -> Path:
        if self.begin is not None:
            shutil.copytree(self.begin, target)
        return target

    def victim(self, warehouse: Path) -> Victim:
        return Victim("nightly", self.logs.settings_file, warehouse, *SETTINGS, *AS_FEW_ROWS, *self.settings)

    def undisturbed(self, warehouse: Path) -> tuple[dict[str, float], str]:
        """Run a night to its end; returns the seconds from the first word of each step to that of the next, and what it printed."""
        at = _length(_log(warehouse))
        victim = self.victim(warehouse)
        began = {}
        while victim.is_alive():
            began.setdefault(step_of(victim.log.read_text()[at:]), time.monotonic())
            time.sleep(POLL_SECONDS)
        assert victim.wait() == 0, victim.log.read_text()[at:]
        began.pop("start", None)
        ends = [*list(began.values())[1:], time.monotonic()]
        seconds = {step: end - begin for (step, begin), end in zip(began.items(), ends, strict=True)}
        return seconds, victim.log.read_text()[at:]

    def strike(self, warehouse: Path, begin: str | None, seconds: float, dice: random.Random) -> str:
        """Kill one run of the night at a random instant of so many seconds from the first word on, of a step or of all; returns the step that
        was struck, empty where it had ended."""
        log, at = _log(warehouse), _length(_log(warehouse))
        victim = self.victim(warehouse)
        while victim.is_alive() and step_of(victim.log.read_text()[at:]) not in ((begin,) if begin else STEPS):
            time.sleep(POLL_SECONDS)
        instant = time.monotonic() + dice.uniform(0, seconds)
        if victim.kill_when(lambda: time.monotonic() >= instant):
            return step_of(log.read_text()[at:])
        assert victim.wait() == 0, log.read_text()[at:]
        return ""


def _log(warehouse: Path) -> Path:
    return warehouse.parent / f"{warehouse.name}.log"


def _length(log: Path) -> int:
    return len(log.read_text()) if log.exists() else 0


def differences(spark: SparkSession, warehouse: Path, expected: dict[str, list[str]]) -> list[str]:
    found = rows_of(Warehouse(spark, str(warehouse)))
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def served(spark: SparkSession, warehouse: Path | None) -> dict[str | None, list[str]]:
    """Of every user, and of newcomers (None), the list that readers see."""
    if warehouse is None or not (there := Warehouse(spark, str(warehouse))).exists(PREDICTIONS):
        return {}
    lists: dict[str | None, list[str]] = defaultdict(list)
    for row in sql(there, "SELECT user_id, item_id FROM predictions_current ORDER BY user_id, rank").collect():
        lists[row["user_id"]].append(row["item_id"])
    return dict(lists)


def kinds_of_night(folder: Path, simulation: SimulationConfig) -> list[Kind]:
    """In the order in which they take turns; runs the night that comes before the second ones."""
    logs, all_logs = Logs(folder / "two_lots", simulation), Logs(folder / "one_lot", simulation)
    all_logs.arrive(_SECOND)
    logs.arrive(_FIRST)
    before = folder / "before"
    Kind("before", logs, None, ()).undisturbed(before)
    logs.arrive(_SECOND)
    news = Kind("news", logs, before, ("nightly.train=never",))
    return [Kind("trains", logs, before, ()), news, Kind("first", all_logs, None, ()), news]


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
        kinds = kinds_of_night(folder, SimulationConfig(**{**vars(SIMULATION), "num_users": given.users}))
        seconds: dict[str, dict[str, float]] = {}
        expected: dict[str, dict[str, list[str]]] = {}
        shown: dict[str, list[dict[str | None, list[str]]]] = {}
        for kind in dict.fromkeys(kinds):
            clean = kind.make(folder / f"clean-{kind.name}")
            seconds[kind.name], printed = kind.undisturbed(clean)
            assert ("all histories were replayed" not in printed) == (kind.name == "news"), printed
            expected[kind.name] = rows_of(Warehouse(spark, str(clean)))
            shown[kind.name] = [served(spark, kind.begin), served(spark, clean)]
            told = ", ".join(f"{step} {took:.0f} s" for step, took in seconds[kind.name].items())
            print(f"an undisturbed night, {kind.name}: {told}", flush=True)
        while sum(struck.values()) < given.kills or not set(STEPS) <= set(struck):
            kind = kinds[ended % len(kinds)]
            target = kind.make(folder / f"killed-{ended}")
            num_kills, wrong = 0, []
            took = seconds[kind.name]
            rarest = min(took, key=lambda step: struck[step])
            instants: Iterator[tuple[str | None, float]] = chain(
                [(rarest, took[rarest])], repeat((None, sum(took.values())))
            )
            while what := kind.strike(target, *next(instants), dice):
                struck[what] += 1
                num_kills += 1
                print(f"  killed in {what}", flush=True)
                seen, (before, after) = served(spark, target), shown[kind.name]
                users = before.keys() | after.keys() | seen.keys()
                if torn := [user for user in users if seen.get(user) not in (before.get(user), after.get(user))]:
                    wrong.append(f"predictions_current after a kill in {what}, for {len(torn)} users")
                if ended % 3 == 0 and num_kills == 2:
                    kind.undisturbed(target)
                    break
            ended += 1
            wrong += differences(spark, target, expected[kind.name])
            _, printed = kind.undisturbed(target)
            if "nightly: nothing to do" not in printed:
                wrong.append("a further run found something to do")
            different += bool(wrong)
            print(
                f"night {ended}, {kind.name}, killed {num_kills} times: "
                f"{'DIFFERS IN ' + ', '.join(wrong) if wrong else 'equals the undisturbed one'}",
                flush=True,
            )
            shutil.rmtree(target, ignore_errors=True)
    spark.stop()
    print(json.dumps({"benchmark": "nightly_kill", "killed_in": dict(struck), "ended": ended, "different": different}))
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
