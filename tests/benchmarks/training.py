"""The training loop against its rivals on the same rows: python -m tests.benchmarks.training [--quick] [--profile]

Histories of simulated users in a Parquet table on disk; the default network without dropout, full softmax, batches of
128 histories, one thread. In turns within one run, each turn in the other order than the one before; about five minutes
on two cores that nobody else uses:

    ours           ReaderSource and Trainer as a rank of `llm-spark train` runs them, reader and all
    in_memory      the same Trainer on the same batches, read before the clock starts
    tutorial_loop  the same network and training with row dicts, a DataLoader, padding and full softmax (tutorial_loop.py)
    plain_gru      no bar, and in the first turn alone: a bare padded GRU over whole histories, with a fraction of our work a token
    bf16           ours under bf16 autocast
    one_rank       ours in a process of its own, and
    two_ranks      in two processes of one thread each, over gloo
    one_rank_256, two_ranks_256
                   both with batches of 256 histories, so that each of two ranks has as many as one rank has by default

The losses of all steps of ours and in_memory are compared to the bit; those of tutorial_loop, which begins with the same
weights, to float tolerance; bf16 and two_ranks (whose batches are cut otherwise) by their last losses: after the first turn,
so that a run whose contenders do not learn alike ends there. Speed is tokens a second; tutorial_loop and plain_gru take the
first NUM_TUTORIAL_STEPS of our steps. A ratio is the median over turns of ours over the rival's; for bf16 of bf16 over fp32
(the processor's flags are printed: without avx512_bf16 or amx_bf16 it rounds for nothing), for two_ranks and two_ranks_256 of two ranks
over one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch
import torch.multiprocessing

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.model.plan import SessionPlan
from llm_spark.reader import Snapshot
from llm_spark.simulation import SimulationConfig
from llm_spark.training.batches import ReaderSource, TrainingStatistics, measure
from llm_spark.training.distributed import Ranks, join_ranks
from llm_spark.training.job import TrainingJob
from llm_spark.training.loop import FitResult, Trainer, learning_rate
from tests.benchmarks import tutorial_loop
from tests.benchmarks.simulated_histories import simulated_histories

BARS = {"in_memory": 0.95, "tutorial_loop": 3.0, "two_ranks": 1.6}
GROUP_ROWS = 512
TUTORIAL_LOSS_TOLERANCE = 1e-3
LAST_LOSS_TOLERANCE = 0.03
"""Relative, of the last steps' mean loss: bf16 rounds, and two ranks cut other batches."""
NUM_LAST_STEPS = 5
NUM_TUTORIAL_STEPS = 2
NAMES = (
    "ours",
    "in_memory",
    "tutorial_loop",
    "plain_gru",
    "bf16",
    "one_rank",
    "two_ranks",
    "one_rank_256",
    "two_ranks_256",
)
ONCE = ("plain_gru",)
"""Contenders without a bar, which take part in the first turn alone."""
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


@dataclass(frozen=True)
class Turn:
    """One contender's turn."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    """Of all threads of this process: tells more than the clock on a machine that others use too."""
    losses: list[float]
    """Mean loss of every step."""


class InMemory:
    """The batches of one epoch, read before."""

    def __init__(self, batches: list[HistoryBatch]) -> None:
        self._batches = batches

    def num_steps(self, epoch: int) -> int:
        return len(self._batches)

    def training(self, epoch: int) -> Iterator[HistoryBatch]:
        return iter(self._batches)

    def validation(self) -> Iterator[HistoryBatch]:
        return iter(())


def write_job(folder: Path, simulation: SimulationConfig) -> TrainingJob:
    """The simulated users' training rows in Parquet, and a job of one epoch over them."""
    histories = simulated_histories(simulation)
    file = folder / "sequences.parquet"
    pq.write_table(histories.training, file, row_group_size=GROUP_ROWS)
    return TrainingJob(
        # Time gaps would be one more input that the tutorial's loop does not have.
        model_config=ModelConfig(dropout=0.0, use_time_gaps=False),
        train_config=TrainConfig(num_epochs=1.0, device="cpu"),
        training=Snapshot((str(file),)),
        validation=Snapshot(()),
        num_tokens=histories.num_tokens,
        num_event_types=histories.num_event_types,
        artifact_path=str(folder / "model"),
        work_dir=str(folder / "work"),
    )


def new_model(job: TrainingJob, statistics_of_training: TrainingStatistics) -> NextEventModel:
    torch.manual_seed(job.train_config.seed)
    of_values = (statistics_of_training.value_mean, statistics_of_training.value_std)
    model = NextEventModel(job.model_config, job.num_tokens, job.num_event_types, *of_values)
    model.begin_at_popularity(statistics_of_training.target_counts_V)
    return model


class Clock:
    """Seconds since it was made: by the clock on the wall, and of this process's CPU time."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def turn(self, num_tokens: int, losses: list[float]) -> Turn:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Turn(num_tokens / wall, num_tokens / cpu, losses)


def timed_fit(trainer: Trainer) -> Turn:
    clock = Clock()
    result: FitResult = trainer.fit()
    return clock.turn(result.num_tokens, result.losses)


class Contenders:
    """Everyone's turn on the same job."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.ranks = Ranks(0, 1, torch.device("cpu"))
        self.source = ReaderSource(job, self.ranks)
        self.statistics = measure(self.source.statistics_pass(), job.num_tokens, self.ranks, job.model_config)
        self.batches = list(self.source.training(0))
        self._rows = self._rows_by_batch()

    def _rows_by_batch(self) -> list[list[tutorial_loop.Row]]:
        """The rows of each of our batches as dicts: the tutorial learns from the same batches, so that losses compare."""
        (file,) = self.job.training.files
        by_content = {(tuple(row["tokens"]), tuple(row["event_times"])): row for row in pq.read_table(file).to_pylist()}
        rows = []
        for batch in self.batches:
            spans = zip(batch.row_offsets[:-1].tolist(), batch.row_offsets[1:].tolist(), strict=True)
            tokens, times = batch.tokens_N.tolist(), batch.event_times_N.tolist()
            rows.append([by_content[tuple(tokens[a:b]), tuple(times[a:b])] for a, b in spans])
        return rows

    def ours(self) -> Turn:
        return timed_fit(self.trainer(self.job.train_config, self.source))

    def in_memory(self) -> Turn:
        return timed_fit(self.trainer(self.job.train_config, InMemory(self.batches)))

    def bf16(self) -> Turn:
        return timed_fit(self.trainer(replace(self.job.train_config, precision="bf16"), self.source))

    def tutorial_loop(self) -> Turn:
        model = tutorial_loop.TutorialModel.like(new_model(self.job, self.statistics), self.job.model_config)
        return self._tutorial(model, tutorial_loop.collate_sessions)

    def plain_gru(self) -> Turn:
        torch.manual_seed(self.job.train_config.seed)
        model = tutorial_loop.PlainGru(self.job.model_config, self.job.num_tokens)
        return self._tutorial(model, tutorial_loop.collate_histories)

    def one_rank(self) -> Turn:
        return in_processes(self.job, 1)

    def two_ranks(self) -> Turn:
        return in_processes(self.job, 2)

    def one_rank_256(self) -> Turn:
        return in_processes(with_batch_rows(self.job, 256), 1)

    def two_ranks_256(self) -> Turn:
        return in_processes(with_batch_rows(self.job, 256), 2)

    def trainer(self, config: TrainConfig, source: ReaderSource | InMemory) -> Trainer:
        model = new_model(self.job, self.statistics)
        return Trainer(model, config, source, self.ranks, self.statistics.target_counts_V)

    def _tutorial(self, model: torch.nn.Module, collate: object) -> Turn:
        config = self.job.train_config
        rows = [row for batch in self._rows[:NUM_TUTORIAL_STEPS] for row in batch]
        loader = torch.utils.data.DataLoader(rows, config.batch_rows, collate_fn=collate)  # type: ignore[arg-type]
        clock = Clock()
        losses = tutorial_loop.train(
            model, loader, lambda step: learning_rate(step, len(self.batches), config), config.clip_norm
        )
        num_tokens = sum(batch.num_tokens for batch in self.batches[:NUM_TUTORIAL_STEPS])
        return clock.turn(num_tokens, losses)


def with_batch_rows(job: TrainingJob, batch_rows: int) -> TrainingJob:
    return replace(job, train_config=replace(job.train_config, batch_rows=batch_rows))


def in_processes(job: TrainingJob, world_size: int) -> Turn:
    """The job on `world_size` new processes of one thread each; starting them is not timed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (job, world_size, port, folder), world_size)
        turns = [Turn(**json.loads((Path(folder) / f"{rank}.json").read_text())) for rank in range(world_size)]
    if any(turn.losses != turns[0].losses for turn in turns):
        raise AssertionError("the ranks of one run tell different losses")
    return turns[0]


def _rank(rank: int, job: TrainingJob, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(value) for name, value in sizes.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with join_ranks("cpu", 600, lambda waiting: None) as ranks:
        source = ReaderSource(job, ranks)
        of_training = measure(source.statistics_pass(), job.num_tokens, ranks, job.model_config)
        trainer = Trainer(new_model(job, of_training), job.train_config, source, ranks, of_training.target_counts_V)
        ranks.sum_over_ranks(torch.zeros(1))
        turn = timed_fit(trainer)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(vars(turn)))


def check_losses(turns: dict[str, Turn]) -> None:
    """Contenders that should learn alike have. Raises AssertionError."""
    ours = turns["ours"].losses
    if turns["in_memory"].losses != ours:
        raise AssertionError("the same batches from memory give other losses")
    theirs = turns["tutorial_loop"].losses
    furthest = max(abs(a - b) / b for a, b in zip(theirs, ours, strict=False))
    print(f"tutorial_loop's losses are ours within {furthest:.1e} (relative) over {len(theirs)} steps")
    if furthest > TUTORIAL_LOSS_TOLERANCE:
        raise AssertionError(f"the tutorial's losses differ by {furthest}: {theirs[:3]} and {ours[:3]}")

    def last(name: str) -> float:
        return statistics.mean(turns[name].losses[-NUM_LAST_STEPS:])

    for name in ("bf16", "one_rank", "two_ranks"):
        print(f"{name}: last losses {last(name):.4f}, ours {last('ours'):.4f}")
        if abs(last(name) / last("ours") - 1) > LAST_LOSS_TOLERANCE:
            raise AssertionError(f"{name} ends at loss {last(name)} and ours at {last('ours')}")


def profile(contenders: Contenders) -> None:
    """Where the CPU time of ours goes: by part of a step, then by operator."""
    spent: dict[str, float] = {}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **kwargs)
            spent[name] = spent.get(name, 0.0) + time.thread_time() - start
            return result

        return timed

    trainer = contenders.trainer(contenders.job.train_config, contenders.source)
    model = trainer.model
    parts = [
        (SessionPlan, "for_targets", "plan the walk"),
        (model, "_inputs", "inputs (embedding)"),
        (model, "_run_cell", "recurrent cell, forward"),
        (model.memory_cell, "fold", "memory, forward"),
        (model.attention, "forward", "attention, forward"),
        (trainer, "_loss", "softmax and its gradient"),
        (torch.Tensor, "backward", "backward of all before the softmax"),
        (trainer._optimizer, "step", "optimizer"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, method, name in parts:
            stack.enter_context(mock.patch.object(owner, method, clocked(name, getattr(owner, method))))
        main_thread, process = time.thread_time(), time.process_time()
        trainer.fit()
        main_thread, process = time.thread_time() - main_thread, time.process_time() - process
    rest = main_thread - sum(spent.values())
    for name, seconds in [*spent.items(), ("the rest", rest), ("reader's threads", process - main_thread)]:
        print(f"{name:<36}{seconds:>8.2f} s{seconds / process:>8.1%}")

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        contenders.ours()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45))


def describe(contenders: Contenders, simulation: SimulationConfig) -> dict[str, Any]:
    """What is measured, and on which processor."""
    job = contenders.job
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info)}
    flags = told.get("flags", "").split()
    return {
        "seeds": {"simulation": simulation.seed, "training": job.train_config.seed},
        "users": simulation.num_users,
        "items": simulation.num_items,
        "rows": sum(batch.num_rows for batch in contenders.batches),
        "tokens": sum(batch.num_tokens for batch in contenders.batches),
        "steps": len(contenders.batches),
        "batch_rows": job.train_config.batch_rows,
        "parameters": sum(p.numel() for p in new_model(job, contenders.statistics).parameters()),
        "torch": torch.__version__,
        "cpu": told.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


def take_turns(contenders: Contenders, num_turns: int) -> list[dict[str, Turn]]:
    """Everyone's turns; the losses are compared after the first."""
    turns: list[dict[str, Turn]] = []
    for number in range(num_turns):
        order = [name for name in NAMES[:: -1 if number % 2 else 1] if not (number and name in ONCE)]
        turns.append({})
        for name in order:
            began = time.perf_counter()
            turns[-1][name] = getattr(contenders, name)()
            print(f"turn {number + 1} of {num_turns}: {name:<14}{time.perf_counter() - began:>7.1f} s", flush=True)
        if number == 0:
            check_losses(turns[0])
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer users and turns; for development")
    parser.add_argument("--profile", action="store_true", help="print where the time of ours goes, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_users, num_items, num_turns = (600, 1_000, 2) if arguments.quick else (2_000, 5_000, 4)
    simulation = SimulationConfig(num_users=num_users, num_items=num_items, items_per_intent=num_items * 3 // 20)
    with tempfile.TemporaryDirectory() as folder:
        contenders = Contenders(write_job(Path(folder), simulation))
        about = describe(contenders, simulation)
        print("\n".join(f"{name:<12}{value}" for name, value in about.items()), flush=True)
        if arguments.profile:
            profile(contenders)
            return
        turns = take_turns(contenders, num_turns)
    over = {
        "in_memory": ("ours", "in_memory"),
        "tutorial_loop": ("ours", "tutorial_loop"),
        "plain_gru": ("ours", "plain_gru"),
        "bf16": ("bf16", "ours"),
        "two_ranks": ("two_ranks", "one_rank"),
        "two_ranks_256": ("two_ranks_256", "one_rank_256"),
    }
    ratios = {
        name: statistics.median(
            turn[top].tokens_per_second / turn[bottom].tokens_per_second
            for turn in turns
            if top in turn and bottom in turn
        )
        for name, (top, bottom) in over.items()
    }
    print(f"\n{'contender':<16}{'tokens/s':>10}{'tokens/CPU s':>14}  {'ratio':>6}  {'bar':>6}")
    for name in NAMES:
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        bar = f"{BARS[name]:.2f}" if name in BARS else ""
        taken = [turn[name] for turn in turns if name in turn]
        speed = statistics.median(turn.tokens_per_second for turn in taken)
        by_cpu = statistics.median(turn.tokens_per_cpu_second for turn in taken)
        print(f"{name:<16}{speed:>10,.0f}{by_cpu:>14,.0f}  {ratio:>6}  {bar:>6}")
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "training", "ratios": rounded, "bars": BARS, "about": about}))


if __name__ == "__main__":
    main()
