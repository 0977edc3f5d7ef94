"""What runs in each training process."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_spark.errors import UserError
from llm_spark.model.artifact import load_artifact, save_content
from llm_spark.model.history import HistoryBatch
from llm_spark.model.initial_embedding import begin_at_vectors
from llm_spark.model.network import NextEventModel, summary
from llm_spark.reader import ReaderError
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.training.batches import ReaderSource, in_settings, measure
from llm_spark.training.checkpoint import CheckpointFolder
from llm_spark.training.distributed import PeerLostError, Ranks, join_ranks
from llm_spark.training.job import Progress, TrainingJob
from llm_spark.training.loop import Trainer
from llm_spark.training.memory import told_where_memory_ends
from llm_spark.training.outcomes import OutcomeObjective
from llm_spark.training.records import FAILED, FINISHED, ProgressWriter, RankRecord, RunFolder
from llm_spark.training.tracking import tracked
from llm_spark.training.warm_start import take_over
from llm_spark.training.watchdog import Watchdog

SMALLEST_PARALLEL_HIDDEN_SIZE = 256
"""A smaller recurrent step is over in well under a millisecond. Two threads then mostly wait for each other: on two
cores that other processes used too, a run of 51 seconds with one thread took 588 with two.
"""

OnStep = Callable[[Progress | None], None]
RankFunction = Callable[[Any, Ranks, OnStep], dict[str, Any]]


@dataclass(frozen=True)
class RankSettings:
    """How a rank is to run, whatever it computes."""

    run_folder: str
    device: str
    timeout_seconds: float
    num_threads: int


def run_rank(function: RankFunction, argument: Any, settings: RankSettings) -> None:
    """Run `function(argument, ranks, on_step)` as one of torchrun's processes and write the records of how it went.

    Spark tries a failed barrier stage again; a rank that finds its own record from before does nothing, so that the
    failure stands.
    """
    rank = int(os.environ["RANK"])
    folder = RunFolder(settings.run_folder)
    if folder.read_start(rank) is not None:
        return
    folder.write_start(rank)
    watchdog = Watchdog(
        settings.timeout_seconds,
        lambda status, error, waiting: folder.write_end(RankRecord(rank, status, error, was_waiting=waiting)),
    )
    torch.set_num_threads(settings.num_threads)
    write_progress = ProgressWriter(folder) if rank == 0 else lambda progress: None
    has_stepped = False

    def on_step(progress: Progress | None) -> None:
        nonlocal has_stepped
        has_stepped |= progress is not None
        between_steps = "validating" if has_stepped else "preparing"
        watchdog.beat(f"at step {progress.step + 1}" if progress is not None else between_steps)
        write_progress(progress)

    try:
        with join_ranks(settings.device, settings.timeout_seconds, watchdog.waiting) as ranks:
            watchdog.beat("preparing")
            result = function(argument, ranks, on_step)
        record = RankRecord(rank, FINISHED, result=result)
    except BaseException as error:
        traceback.print_exc()
        # An error's text may run over many lines; the first says what it is.
        text = next(iter(str(error).splitlines()), "")
        was_waiting, code = isinstance(error, PeerLostError), getattr(error, "exit_code", UserError.exit_code)
        by_user = isinstance(error, UserError | ReaderError)
        line = in_settings(text) if by_user or was_waiting else f"{type(error).__name__}: {text}"
        record = RankRecord(rank, FAILED, line, is_user_error=by_user, exit_code=code, was_waiting=was_waiting)
    watchdog.end(lambda: folder.write_end(record))
    _remove_folders_of_torchrun()
    if record.status == FAILED:
        # Not sys.exit: the process group's threads may keep a broken process alive.
        sys.stderr.flush()
        os._exit(1)


def _remove_folders_of_torchrun() -> None:
    """torchrun makes folders for errors that it might be told of, <torchelastic_x>/<run>/<attempt>/<rank>, and leaves them in each night's
    temporary folder: the last rank of a machine to end takes them along."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return
    of_rank = Path(error_file).parent
    with suppress(OSError):  # those of others are in it
        for folder in (of_rank, *of_rank.parents[:2]):
            folder.rmdir()
        if of_rank.parents[2].name.startswith("torchelastic_"):
            of_rank.parents[2].rmdir()


def train_rank(job: TrainingJob, ranks: Ranks, on_step: OnStep) -> dict[str, Any]:
    """Train this rank's share of `job`; rank 0 saves the model, all but its manifest. The result is JSON.

    Raises UserError for what the user can put right, memory that does not suffice included.
    """
    with told_where_memory_ends(job.model_config, job.train_config, ranks.rank):
        return _train(job, ranks, on_step)


def _train(job: TrainingJob, ranks: Ranks, on_step: OnStep) -> dict[str, Any]:
    config = job.train_config
    if job.model_config.hidden_size < SMALLEST_PARALLEL_HIDDEN_SIZE:
        torch.set_num_threads(1)
    source = ReaderSource(job, ranks)
    statistics = measure(_beating(source.statistics_pass(), on_step), job.num_tokens, ranks, job.model_config)
    on_step(None)
    torch.manual_seed(config.seed)
    model = NextEventModel(
        job.model_config, job.num_tokens, job.num_event_types, statistics.value_mean, statistics.value_std
    ).to(ranks.device)
    if model.number_input is not None:
        model.number_input.standardise_by(statistics.number_mean_K, statistics.number_std_K)
    if model.outcome_head is not None:
        model.outcome_head.begin_at(statistics.label_mean_O, statistics.account_mean_A, statistics.account_std_A)
    if job.initial_embedding is not None:
        begin_at_vectors(model, job.initial_embedding)
    model.begin_at_popularity(statistics.target_counts_V)
    if job.parent_path is not None:
        take_over(model, load_artifact(job.parent_path).model, statistics.target_counts_V)
    # All ranks begin with the same weights; what each drops out is its own.
    torch.manual_seed(config.seed + ranks.rank)
    identity = job.checkpoint_identity() | {"device": ranks.device.type}
    checkpoints = CheckpointFolder(job.checkpoint_path, identity, config.keep_checkpoints, job.launch_id)
    model_id = job.artifact_path.rstrip("/").rsplit("/", 1)[-1]
    num_targets = int(statistics.target_counts_V[FIRST_ITEM_TOKEN:].sum())
    objective = OutcomeObjective(job.model_config, num_targets, statistics.num_labels_O, model.outcome_head)
    track = config.track if ranks.rank == 0 else "none"
    with tracked(track, model_id, job.tracking_path, identity) as send:
        fitted = Trainer(
            model, config, source, ranks, statistics.target_counts_V, on_step, checkpoints, send, objective
        ).fit()
    result: dict[str, Any] = {"num_steps": fitted.num_steps, "final_loss": fitted.final_loss}
    if ranks.rank == 0:
        checkpoints.check_owner()
        settings = {"train": dataclasses.asdict(config), "temperature": fitted.temperature}
        result |= {
            "files": save_content(job.artifact_path, model, settings, job.provenance),
            "num_tokens": fitted.num_tokens,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "best_step": fitted.best_step,
            "best_recall": fitted.best_recall,
            "resumed_at_step": fitted.resumed_at_step,
            "metrics": [dataclasses.asdict(metric) for metric in fitted.metrics],
            "model_summary": summary(model),
        }
    return result


def _beating(batches: Iterator[HistoryBatch], on_step: OnStep) -> Iterator[HistoryBatch]:
    """The batches, with a sign of life after each."""
    for batch in batches:
        yield batch
        on_step(None)
