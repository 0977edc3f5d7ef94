"""From the reader's batches to the model's, and what has to be known of the training data before the first step.

Shape suffixes: V vocabulary rows, N tokens, K numbers of an event, L moments, O outcomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.config.outcomes import OPENING_COLUMNS
from llm_spark.errors import DataError, UserError
from llm_spark.model.history import HistoryBatch
from llm_spark.model.inputs import num_step_numbers, step_numbers
from llm_spark.model.outcomes import NUM_ACCOUNT_NUMBERS, Moments
from llm_spark.model.past import Opening
from llm_spark.reader import Epoch, RaggedReader, Snapshot
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import TrainingJob

STATISTICS_BATCH_ROWS = 1024
STALL_SHARE = 0.8
"""Of the time after which a rank counts as stuck: the reader, which knows the file, speaks first."""
_REMEDIES = {
    "or raise stall_seconds": "or raise train.timeout_seconds",
    "or raise num_attempts": "then run this again",
    "run with fewer workers or a smaller buffer, then resume": "lower train.reader_workers, then run this again",
}
"""The reader's remedies, and what they are in a training run."""


def columns_of(config: ModelConfig) -> list[str]:
    """The columns of the sequences table that this model reads."""
    return [*config.history_columns, "first_target", *config.moment_columns]


def in_settings(error: str) -> str:
    """An error of the reader with the remedies that a training run has."""
    for theirs, ours in _REMEDIES.items():
        error = error.replace(theirs, ours)
    return error


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
        return _ReaderBatches(self._train.epoch(epoch), self._histories)

    def resume(self, state: dict[str, Any]) -> Batches:
        return _ReaderBatches(self._train.resume(state), self._histories)

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
            stall_seconds=STALL_SHARE * config.timeout_seconds,
        )


class _ReaderBatches:
    """An epoch of the reader, as the model takes it."""

    def __init__(self, epoch: Epoch, histories: Callable[[Any], HistoryBatch]) -> None:
        self._epoch, self._histories = epoch, histories

    def __iter__(self) -> Iterator[HistoryBatch]:
        return self

    def __next__(self) -> HistoryBatch:
        return self._histories(next(self._epoch))

    def state(self) -> dict[str, Any]:
        return self._epoch.state()


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
        histories = HistoryBatch.from_columns(
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
        return _with_moments(histories, batch, len(config.outcomes)) if config.outcomes else histories
    except ValueError as error:
        raise DataError(f"the sequences are damaged: {error}; run the sequences stage again") from error


def _with_moments(histories: HistoryBatch, batch: Any, num_outcomes: int) -> HistoryBatch:
    places = batch["outcome_places"]
    moments = Moments.from_columns(
        places=places.values,
        offsets=places.offsets.to(torch.int64),
        elapsed_seconds=batch["outcome_elapsed_seconds"].values,
        labels=batch["outcome_labels"].values,
        row_offsets=histories.row_offsets,
        num_outcomes=num_outcomes,
    )
    opening = Opening.from_columns(*(batch[name] for name in OPENING_COLUMNS))
    return dataclasses.replace(histories, moments=moments, opening=opening)


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
    num_labels_O: Tensor
    """int64: how many moments have a label of each outcome."""
    label_mean_O: Tensor
    """float32."""
    account_mean_A: Tensor
    """float32: of what the outcome head takes beside the context, over all moments."""
    account_std_A: Tensor


def measure(batches: Iterator[HistoryBatch], num_tokens: int, ranks: Ranks, config: ModelConfig) -> TrainingStatistics:
    """Count targets, and measure values and the model's other numbers, over all ranks' batches. UserError when there is nothing to learn."""
    counts_V = torch.zeros(num_tokens, dtype=torch.float64)
    moments_3K = torch.zeros(3, 1 + num_step_numbers(config), dtype=torch.float64)
    labels_2O = torch.zeros(2, len(config.outcomes), dtype=torch.float64)
    account_3A = torch.zeros(3, NUM_ACCOUNT_NUMBERS, dtype=torch.float64)
    for batch in batches:
        first_N = (batch.row_offsets[:-1] + batch.first_target_B).repeat_interleave(batch.row_offsets.diff())
        targets = batch.tokens_N[torch.arange(batch.num_tokens) >= first_N]
        counts_V += torch.bincount(targets, minlength=num_tokens)
        moments_3K += _moments(torch.cat([batch.values_N[:, None], step_numbers(batch, config)], dim=1))
        if batch.moments is not None:
            labels_LO = batch.moments.labels_LO.double()
            labels_2O += torch.stack([(~labels_LO.isnan()).sum(dim=0), labels_LO.nansum(dim=0)])
            account_3A += _moments(batch.moment_numbers())
    parts = [counts_V, moments_3K.flatten(), labels_2O.flatten(), account_3A.flatten()]
    totals = ranks.sum_over_ranks(torch.cat(parts).to(ranks.device)).cpu().split([part.numel() for part in parts])
    counts_V, moments_3K, labels_2O = totals[0].long(), totals[1].view(3, -1), totals[2].view(2, -1)
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
    for outcome, num_labels in zip(config.outcomes, labels_2O[0].tolist(), strict=True):
        if num_labels == 0:
            raise UserError(
                f"nothing to learn of outcome '{outcome.name}': no moment of the training split has {outcome.within_days:g} days "
                "after it that training knows; give a later sequences.train_until, or fewer within_days"
            )
    mean_K, std_K = _mean_and_deviation(moments_3K)
    account_mean_A, account_std_A = _mean_and_deviation(totals[3].view(3, -1))
    return TrainingStatistics(
        target_counts_V=counts_V,
        value_mean=float(mean_K[0]),
        value_std=float(std_K[0]),
        number_mean_K=mean_K[1:].float(),
        number_std_K=std_K[1:].float(),
        num_labels_O=labels_2O[0].long(),
        label_mean_O=(labels_2O[1] / labels_2O[0]).float(),
        account_mean_A=account_mean_A.float(),
        account_std_A=account_std_A.float(),
    )


def _moments(numbers_NK: Tensor) -> Tensor:
    """How many of each number are known, their sum and the sum of their squares, [3, K], float64."""
    known_NK = numbers_NK.isfinite()
    numbers_NK = numbers_NK.double().masked_fill(~known_NK, 0.0)
    return torch.stack([known_NK.sum(dim=0), numbers_NK.sum(dim=0), numbers_NK.square().sum(dim=0)])


def _mean_and_deviation(moments_3K: Tensor) -> tuple[Tensor, Tensor]:
    num_known_K = moments_3K[0].clamp(min=1)
    mean_K = moments_3K[1] / num_known_K
    std_K = (moments_3K[2] / num_known_K - mean_K.square()).clamp(min=0).sqrt()
    # All equal but for rounding, or none known: nothing to divide by.
    return mean_K, torch.where(std_K > 1e-6 * mean_K.abs(), std_K, torch.ones_like(std_K))
