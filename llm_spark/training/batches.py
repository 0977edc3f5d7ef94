"""From the reader's batches to the model's, and what has to be known of the training data before the first step.

Shape suffixes: V vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_spark.config import TrainConfig
from llm_spark.errors import DataError, UserError
from llm_spark.model.history import HistoryBatch
from llm_spark.reader import Epoch, RaggedReader, Snapshot
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import TrainingJob

COLUMNS = ["tokens", "event_types", "values", "event_times", "session_starts", "first_target"]
STATISTICS_BATCH_ROWS = 1024


class Batches(Protocol):
    """One rank's batches of one epoch."""

    def __iter__(self) -> Iterator[HistoryBatch]: ...

    def __next__(self) -> HistoryBatch: ...

    def state(self) -> dict[str, Any]:
        """Where they stand, as JSON, for `BatchSource.resume`: asked for after the step that used the last batch."""
        ...


class BatchSource(Protocol):
    """Where the loop takes its batches from. Every rank takes the same number of training steps; a batch may be empty."""

    def num_steps(self, epoch: int) -> int: ...

    def training(self, epoch: int) -> Batches: ...

    def resume(self, state: dict[str, Any]) -> Batches:
        """The batches of the epoch that would have followed."""
        ...

    def validation(self) -> Iterator[HistoryBatch]: ...


class ReaderSource:
    """This rank's share of the sequences table's files, through the reader."""

    def __init__(self, job: TrainingJob, ranks: Ranks) -> None:
        """Raises UserError when there are fewer training rows than ranks."""
        self._job = job
        self._rows_a_rank = max(1, job.train_config.batch_rows // ranks.world_size)
        self._ranks = ranks
        if not job.training.files:
            raise UserError(
                "nothing to learn: the training split holds no rows; give more data, or a later sequences.train_until"
            )
        self._train = self._reader(job.training, self._rows_a_rank, shuffle=True)
        self._validation = (
            self._reader(job.validation, self._rows_a_rank, shuffle=False) if job.validation.files else None
        )
        if self._train.num_rows < ranks.world_size:
            raise UserError(
                f"the training split holds {self._train.num_rows} sequences for {ranks.world_size} ranks: "
                f"give train.num_ranks={max(1, self._train.num_rows)} or fewer, or more data"
            )

    def num_steps(self, epoch: int) -> int:
        return self._train.num_steps(epoch)

    def training(self, epoch: int) -> Batches:
        return _ReaderBatches(self._train.epoch(epoch), self._job)

    def resume(self, state: dict[str, Any]) -> Batches:
        return _ReaderBatches(self._train.resume(state), self._job)

    def validation(self) -> Iterator[HistoryBatch]:
        if self._validation is not None:
            for batch in self._validation.epoch(0):
                yield history_batch(batch, self._job.num_tokens, self._job.num_event_types)

    def statistics_pass(self) -> Iterator[HistoryBatch]:
        """Every training row once, in large batches."""
        for batch in self._reader(self._job.training, STATISTICS_BATCH_ROWS, shuffle=False).epoch(0):
            yield history_batch(batch, self._job.num_tokens, self._job.num_event_types)

    def _reader(self, files: Snapshot, batch_rows: int, shuffle: bool) -> RaggedReader:
        config: TrainConfig = self._job.train_config
        return RaggedReader(
            files=files,
            columns=COLUMNS,
            batch_rows=batch_rows,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            seed=config.seed,
            shuffle=shuffle,
            num_workers=max(1, config.reader_workers),
            stall_seconds=config.timeout_seconds,
        )


class _ReaderBatches:
    """An epoch of the reader, as the model takes it."""

    def __init__(self, epoch: Epoch, job: TrainingJob) -> None:
        self._epoch, self._job = epoch, job

    def __iter__(self) -> Iterator[HistoryBatch]:
        return self

    def __next__(self) -> HistoryBatch:
        return history_batch(next(self._epoch), self._job.num_tokens, self._job.num_event_types)

    def state(self) -> dict[str, Any]:
        return self._epoch.state()


def history_batch(batch, num_tokens: int, num_event_types: int) -> HistoryBatch:  # type: ignore[no-untyped-def]
    """One of the reader's batches as the model takes it. Raises DataError when a code lies outside its vocabulary."""
    tokens, starts = batch["tokens"], batch["session_starts"]
    for name, values, size in (
        ("token", tokens.values, num_tokens),
        ("event type", batch["event_types"].values, num_event_types),
    ):
        if values.numel() and (int(values.min()) < 1 or int(values.max()) >= size):
            wrong = int(values.max()) if int(values.max()) >= size else int(values.min())
            raise DataError(
                f"the sequences hold {name} {wrong} where the vocabulary has codes 1 to {size - 1}: run the sequences stage again"
            )
    try:
        return HistoryBatch.from_columns(
            tokens=tokens.values,
            token_offsets=tokens.offsets,
            event_types=batch["event_types"].values,
            values=batch["values"].values,
            event_times=batch["event_times"].values,
            session_starts=starts.values,
            session_start_offsets=starts.offsets,
            first_target=batch["first_target"],
        )
    except ValueError as error:
        raise DataError(f"the sequences are damaged: {error}; run the sequences stage again") from error


@dataclass(frozen=True)
class TrainingStatistics:
    """What the model and the losses need to know of the training split, the same on every rank."""

    target_counts_V: Tensor
    """int64: how often each token is a target."""
    value_mean: float
    value_std: float


def measure(batches: Iterator[HistoryBatch], num_tokens: int, ranks: Ranks) -> TrainingStatistics:
    """Count targets and measure values over all ranks' batches. Raises UserError when there is nothing to learn."""
    counts_V = torch.zeros(num_tokens, dtype=torch.float64)
    moments = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        first_N = (batch.row_offsets[:-1] + batch.first_target_B).repeat_interleave(batch.row_offsets.diff())
        targets = batch.tokens_N[torch.arange(batch.num_tokens) >= first_N]
        counts_V += torch.bincount(targets, minlength=num_tokens)
        values = batch.values_N.double()
        values = values[values.isfinite()]
        moments += torch.stack(
            [torch.tensor(float(len(values)), dtype=torch.float64), values.sum(), values.square().sum()]
        )
    totals = ranks.sum_over_ranks(torch.cat([counts_V, moments]).to(ranks.device)).cpu()
    counts_V, (num_values, total, squares) = totals[:num_tokens].long(), totals[num_tokens:].tolist()
    items_V = counts_V[FIRST_ITEM_TOKEN:]
    if num_tokens <= FIRST_ITEM_TOKEN + 1:
        raise UserError(
            f"nothing to learn: the vocabulary holds {max(0, num_tokens - FIRST_ITEM_TOKEN)} items; "
            "lower sequences.min_item_count, or give more data"
        )
    if int(items_V.sum()) == 0:
        raise UserError(
            "nothing to learn: no sequence of the training split has an item after its first event; "
            "give more data, or lower sequences.min_item_count"
        )
    mean = total / num_values if num_values else 0.0
    variance = max(squares / num_values - mean**2, 0.0) if num_values else 0.0
    return TrainingStatistics(counts_V, mean, math.sqrt(variance) or 1.0)
