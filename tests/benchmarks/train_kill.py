"""Training killed at random instants, then run again: python -m tests.benchmarks.train_kill [--kills 20] [--ranks 1 2] [--users 300]

A small simulated data set is taken through every stage before training once. A clean `llm-spark train` on a copy gives the reference. Then
`--kills` times a run is started, or goes on where the last one was killed, and is killed with SIGKILL after a random part of the time that
the clean run took from its first rank's start to its end: the driver with its JVM and ranks, every third time the driver alone, every third
time one rank alone (then the command must fail by itself, within `FAILS_WITHIN_SECONDS`; where it does not it is killed, and has hung). A
run that ends before its kill starts a new copy. After each kill the folder must hold no model, or a whole one; and whenever a run ends,
within ten times the clean one's time, its weights must be the reference's: to the bit for one rank, to 1e-3 for several. Ends with one JSON
line: kills that struck, commands that hung, runs that ended, those that differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llm_spark import config as settings
from llm_spark import spark as spark_room
from llm_spark.pipelines.stages import run_stage
from llm_spark.tables.warehouse import Warehouse
from llm_spark.training.launch import GRACE_SECONDS
from tests.integration.training_victim import are_equal, untrained_copy, weights
from tests.killing import SMALL_SPARK, Victim, settings_file

TIMEOUT_SECONDS = 60
FAILS_WITHIN_SECONDS = TIMEOUT_SECONDS + GRACE_SECONDS + 30
"""The ranks' watchdogs, the launcher's grace, and torchrun's for ranks that do not heed SIGTERM."""
START_SECONDS = 120
"""Of a command, before its first rank is up; generous, for a JVM on a machine that others use too."""
MODEL = [
    *("model.embedding_size=16", "model.hidden_size=24", "model.dense_size=24", "model.memory_size=12"),
    *("train.num_epochs=12", "train.batch_rows=16", "train.device=cpu", "train.checkpoint_seconds=0"),
    f"train.timeout_seconds={TIMEOUT_SECONDS}",
]
TOLERANCE = 1e-3


def prepare(folder: Path, num_users: int) -> tuple[Path, Path]:
    """The settings file, and a warehouse that every stage before training has run on."""
    file = settings_file(folder, num_users)
    spark = spark_room.session(SMALL_SPARK, "train_kill")
    config = settings.load(file, [f"warehouse={folder / 'before'}"], ("ingest",))
    for stage in ("ingest", "sessionize", "sequences"):
        run_stage(stage, Warehouse(spark, config.warehouse), config)
    spark.stop()
    return file, folder / "before"


def first_rank_is_up(warehouse: Path) -> bool:
    return bool(list(warehouse.glob("staging/train-*/run-*/rank-*.started.json")))


def kill_one_rank(victim: Victim, is_time: Callable[[], bool], dice: random.Random) -> int:
    """SIGKILL a rank; the command must then fail by itself. Its exit code, -SIGKILL where it hung, 0 where it had ended before."""
    while not is_time():
        if not victim.is_alive():
            return 0
        time.sleep(0.005)
    records = sorted(victim.warehouse.glob("staging/train-*/run-*/rank-*.started.json"))
    if not records:
        return 0
    try:
        os.kill(json.loads(dice.choice(records).read_text())["pid"], signal.SIGKILL)
    except ProcessLookupError:
        return 0
    began = time.monotonic()
    code = victim.wait(FAILS_WITHIN_SECONDS)
    print(f"    the command ended with {code} after {time.monotonic() - began:.1f} s", flush=True)
    return code


def differ(ours: dict[str, dict[str, torch.Tensor]], theirs: dict[str, dict[str, torch.Tensor]], exact: bool) -> bool:
    if exact:
        return not are_equal(ours, theirs)
    return ours.keys() != theirs.keys() or any(
        not torch.allclose(tensor, theirs[model][name], rtol=TOLERANCE, atol=TOLERANCE)
        for model in ours
        for name, tensor in ours[model].items()
    )


def strike(victim: Victim, number: int, seconds: float, dice: random.Random) -> tuple[str, bool]:
    """Kill a victim at a random instant; says what was struck, an empty text where it ended before, and whether it then hung."""
    instant = 0.0

    def is_time() -> bool:
        nonlocal instant
        if not instant and first_rank_is_up(victim.warehouse):
            instant = time.monotonic() + dice.uniform(0, seconds)
        return 0 < instant <= time.monotonic()

    if number % 3 == 2:
        code = kill_one_rank(victim, is_time, dice)
        return "one rank" if code in (1, -signal.SIGKILL) else "", code == -signal.SIGKILL
    with_ranks = number % 3 == 0
    name = "driver and ranks" if with_ranks else "driver"
    return name if victim.kill_when(is_time, with_ranks) else "", False


def try_ranks(num_ranks: int, num_kills: int, file: Path, before: Path, folder: Path) -> dict[str, int]:
    overrides = [*MODEL, f"train.num_ranks={num_ranks}"]
    clean = folder / f"clean-{num_ranks}"
    untrained_copy(before, clean)
    victim = Victim("train", file, clean, *overrides)
    while victim.is_alive() and not first_rank_is_up(clean):
        time.sleep(0.005)
    began = time.monotonic()
    assert victim.wait() == 0, victim.log.read_text()
    seconds, expected = time.monotonic() - began, weights(clean)
    limit_seconds = START_SECONDS + 10 * seconds
    dice, struck, hung, ended, different, copy = random.Random(num_ranks), 0, 0, 0, 0, 0
    target = folder / f"killed-{num_ranks}-{copy}"
    untrained_copy(before, target)
    while struck < num_kills:
        for stale in target.glob("staging/train-*/run-*"):
            shutil.rmtree(stale)  # its records would be taken for the next run's
        victim = Victim("train", file, target, *overrides)
        what, has_hung = strike(victim, struck, seconds, dice)
        steps = sorted(path.parent.name for path in target.glob("staging/train-*/checkpoints/*/manifest.json"))
        print(
            f"{num_ranks} ranks: killed {what or 'nothing, it had ended'}{', and it HUNG' if has_hung else ''}; "
            f"newest checkpoint {steps[-1:]}",
            flush=True,
        )
        struck += bool(what)
        hung += has_hung
        if what and struck < num_kills:
            continue
        last = victim if not what else Victim("train", file, target, *overrides)
        code = last.wait(limit_seconds)
        ended += 1
        wrong = code != 0 or differ(weights(target), expected, exact=num_ranks == 1)
        different += wrong
        print(f"  ended with code {code}: {'DIFFERS FROM' if wrong else 'equals'} the clean run", flush=True)
        copy += 1
        target = folder / f"killed-{num_ranks}-{copy}"
        untrained_copy(before, target)
    return {"struck": struck, "hung": hung, "ended": ended, "different": different}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--users", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file, before = prepare(Path(name), given.users)
        result = {f"ranks_{n}": try_ranks(n, given.kills, file, before, Path(name)) for n in given.ranks}
    print(json.dumps({"benchmark": "train_kill", **result}))
    return int(any(counts["hung"] or counts["different"] for counts in result.values()))


if __name__ == "__main__":
    sys.exit(main())
