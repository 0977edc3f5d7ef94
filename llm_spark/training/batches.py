"""From the reader's batches to the model's, and what has to be known of the training data before the first step.

Shape suffixes: V vocabulary rows, N tokens, K numbers of an event.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.errors import DataError, UserError
from llm_spark.model.history import HistoryBatch
from llm_spark.model.inputs import num_step_numbers, step_numbers
from llm_spark.reader import RaggedReader, Snapshot
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import TrainingJob

COLUMNS = ["tokens", "event_types", "values", "event_times", "session_starts", "first_target"]
STATISTICS_BATCH_ROWS = 1024


def columns_of(config: ModelConfig) -> list[str]:
    """The columns of the sequences table that this model reads."""
    return COLUMNS + (["features"] if config.features else [])


class BatchSource(Protocol):
    """Where the loop takes its batches from. Every rank takes the same number of training steps; a batch may be empty."""

    def num_steps(self, epoch: int) -> int: ...

    def training(self, epoch: int) -> Iterator[HistoryBatch]: ...

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

    def training(self, epoch: int) -> Iterator[HistoryBatch]:
        for batch in self._train.epoch(epoch):
            yield self._histories(batch)

    def validation(self) -> Iterator[HistoryBatch]:
        if self._validation is not None:
            for batch in self._validation.epoch(0):
                yield self._histories(batch)

    def statistics_pass(self) -> Iterator[HistoryBatch]:
        """Every training row once, in large batches."""
        for batch in self._reader(self._job.training, STATISTICS_BATCH_ROWS, shuffle=False).epoch(0):
            yield self._histories(batch)

    def _histories(self, batch: Any) -> HistoryBatch:
        job = self._job
        return history_batch(batch, job.num_tokens, job.num_event_types, job.model_config)

    def _reader(self, files: Snapshot, batch_rows: int, shuffle: bool) -> RaggedReader:
        config: TrainConfig = self._job.train_config
        return RaggedReader(
            files=files,
            columns=columns_of(self._job.model_config),
            batch_rows=batch_rows,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            seed=config.seed,
            shuffle=shuffle,
            num_workers=max(1, config.reader_workers),
            stall_seconds=config.timeout_seconds,
        )


def history_batch(batch: Any, num_tokens: int, num_event_types: int, config: ModelConfig) -> HistoryBatch:
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
            features=batch["features"].values if config.features else None,
            num_features=len(config.features),
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
    number_mean_K: Tensor
    """float32: of the model's `step_numbers`, missing ones left out."""
    number_std_K: Tensor


def measure(batches: Iterator[HistoryBatch], num_tokens: int, ranks: Ranks, config: ModelConfig) -> TrainingStatistics:
    """Count targets, and measure values and the model's other numbers, over all ranks' batches. UserError when there is nothing to learn."""
    counts_V = torch.zeros(num_tokens, dtype=torch.float64)
    moments_3K = torch.zeros(3, 1 + num_step_numbers(config), dtype=torch.float64)
    for batch in batches:
        first_N = (batch.row_offsets[:-1] + batch.first_target_B).repeat_interleave(batch.row_offsets.diff())
        targets = batch.tokens_N[torch.arange(batch.num_tokens) >= first_N]
        counts_V += torch.bincount(targets, minlength=num_tokens)
        numbers_NK = torch.cat([batch.values_N[:, None], step_numbers(batch, config)], dim=1).double()
        known_NK = numbers_NK.isfinite()
        numbers_NK = numbers_NK.masked_fill(~known_NK, 0.0)
        moments_3K += torch.stack([known_NK.sum(dim=0), numbers_NK.sum(dim=0), numbers_NK.square().sum(dim=0)])
    totals = ranks.sum_over_ranks(torch.cat([counts_V, moments_3K.flatten()]).to(ranks.device)).cpu()
    counts_V, moments_3K = totals[:num_tokens].long(), totals[num_tokens:].view(3, -1)
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
    num_known_K = moments_3K[0].clamp(min=1)
    mean_K = moments_3K[1] / num_known_K
    std_K = (moments_3K[2] / num_known_K - mean_K.square()).clamp(min=0).sqrt()
    # All equal but for rounding, or none known: nothing to divide by.
    std_K = torch.where(std_K > 1e-6 * mean_K.abs(), std_K, torch.ones_like(std_K))
    return TrainingStatistics(counts_V, float(mean_K[0]), float(std_K[0]), mean_K[1:].float(), std_K[1:].float())
