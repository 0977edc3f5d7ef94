"""A process that trains, killed with SIGKILL at instants drawn by lot, then begun again with the same job."""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from llm_spark.training.distributed import Ranks
from llm_spark.training.job import TrainingJob
from llm_spark.training.rank import train_rank
from tests.model.histories import random_rows
from tests.training.sequences import SMALL_MODEL, small_job

NUM_KILLS = 6


def train_alone(job: TrainingJob) -> None:
    torch.set_num_threads(1)
    train_rank(job, Ranks(0, 1, torch.device("cpu")), lambda progress: None)


def begin(job: TrainingJob) -> multiprocessing.Process:
    # A server that has loaded torch and has no threads, of which each child is a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm_spark.training.rank", "tests.training.sequences"])
    process = context.Process(target=train_alone, args=(job,))
    process.start()
    return process


def newest_step(job: TrainingJob) -> int:
    whole = Path(job.checkpoint_path).glob("step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in whole), default=0)


def wait_for_steps(job: TrainingJob, num_steps: int, process: multiprocessing.Process) -> None:
    """Until checkpoints are so many steps further than now, or the process has ended."""
    wanted = newest_step(job) + num_steps
    while newest_step(job) < wanted and process.is_alive():
        time.sleep(0.001)


@pytest.mark.parametrize("checkpoint_seconds", [0.0, pytest.param(0.02, marks=pytest.mark.slow)])
def test_a_process_killed_again_and_again_ends_in_the_weights_of_one_that_never_was(
    tmp_path: Path, checkpoint_seconds: float
) -> None:
    job = small_job(
        tmp_path, random_rows(60, 12, 4, seed=1), random_rows(20, 12, 4, seed=2), num_epochs=4.0, loss="sampled",
        num_negatives=5, patience=9, checkpoint_seconds=checkpoint_seconds,
        model_config=dataclasses.replace(SMALL_MODEL, dropout=0.2),
    )  # fmt: skip
    never_killed = dataclasses.replace(
        job, artifact_path=str(tmp_path / "expected"), work_dir=str(tmp_path / "expected-work")
    )
    begin(never_killed).join()
    dice, num_killed = random.Random(0), 0
    while True:
        process = begin(job)
        if num_killed < NUM_KILLS:
            wait_for_steps(job, dice.choice([0, 1, 2, 3]), process)
            process.join(dice.uniform(0, 0.05))  # anywhere in a step, or in a checkpoint
            process.kill()
        process.join(timeout=60)
        num_killed += process.exitcode != 0
        if process.exitcode == 0:
            break
    assert num_killed >= 3, "it came to its end before it could be killed"
    ours, theirs = (
        safetensors.torch.load_file(Path(j.artifact_path) / "weights.safetensors") for j in (job, never_killed)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
