"""Histories in memory, and the batches that the training loop takes from them.

Shape suffixes: B rows, N tokens, S sessions, K rows of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llm_spark.model.history import HistoryBatch

EVENT_TYPE = 2
"""These data sets tell no event types apart: all events have the first code that is not reserved."""
NUM_EVENT_TYPES = 3
POOL_BATCHES = 32
"""Rows are sorted by length within so many batches at a time, so that a batch's rows are about equally long."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Rows of the sequences table, as far as these data sets fill it."""

    tokens_N: Ints
    row_offsets: Ints
    session_starts_S: Ints
    """Positions within the row."""
    session_offsets: Ints
    """Row b's sessions are `session_starts_S[session_offsets[b]:session_offsets[b+1]]`."""
    first_target_B: Ints
    event_times_N: Ints

    @classmethod
    def of_sessions(cls, sessions: Sequence[Sequence[int]], first_targets: Sequence[int] | None = None) -> Histories:
        """One session a row, of users unknown. Given no `first_targets`, everything but a row's first token is predicted."""
        lengths = np.array([len(tokens) for tokens in sessions], dtype=np.int64)
        tokens_N = np.fromiter((token for tokens in sessions for token in tokens), np.int64, lengths.sum())
        first_B = np.ones(len(sessions), np.int64) if first_targets is None else np.asarray(first_targets, np.int64)
        return cls(
            tokens_N=tokens_N,
            row_offsets=np.concatenate([[0], np.cumsum(lengths)]),
            session_starts_S=np.zeros(len(sessions), np.int64),
            session_offsets=np.arange(len(sessions) + 1),
            first_target_B=first_B,
            event_times_N=np.zeros(len(tokens_N), np.int64),
        )

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def length_B(self) -> Ints:
        return np.diff(self.row_offsets)

    def batch(self, rows_K: Ints) -> HistoryBatch:
        """These rows, in this order."""
        tokens_N, token_offsets = _take(self.row_offsets, rows_K)
        starts_S, start_offsets = _take(self.session_offsets, rows_K)
        return HistoryBatch.from_columns(
            tokens=torch.from_numpy(self.tokens_N[tokens_N]),
            token_offsets=torch.from_numpy(token_offsets),
            event_types=torch.full((len(tokens_N),), EVENT_TYPE),
            values=torch.full((len(tokens_N),), torch.nan),
            event_times=torch.from_numpy(self.event_times_N[tokens_N]),
            session_starts=torch.from_numpy(self.session_starts_S[starts_S]),
            session_start_offsets=torch.from_numpy(start_offsets),
            first_target=torch.from_numpy(self.first_target_B[rows_K]),
        )

    def batches(self, batch_rows: int) -> Iterator[tuple[Ints, HistoryBatch]]:
        """All rows once, longest first, with their indices."""
        order_B = np.argsort(-self.length_B, kind="stable")
        for first in range(0, len(self), batch_rows):
            rows_K = order_B[first : first + batch_rows]
            yield rows_K, self.batch(rows_K)

    def target_counts(self, num_tokens: int) -> torch.Tensor:
        """How often each token is a target, int64 [V]."""
        position_N = np.arange(len(self.tokens_N)) - np.repeat(self.row_offsets[:-1], self.length_B)
        targets = self.tokens_N[position_N >= np.repeat(self.first_target_B, self.length_B)]
        return torch.from_numpy(np.bincount(targets, minlength=num_tokens))


def _take(offsets: Ints, rows_K: Ints) -> tuple[Ints, Ints]:
    """Where the elements of these rows stand, laid end to end, and the rows' offsets there."""
    lengths_K = np.diff(offsets)[rows_K]
    taken_offsets = np.concatenate([[0], np.cumsum(lengths_K)])
    places = np.arange(taken_offsets[-1]) + np.repeat(offsets[:-1][rows_K] - taken_offsets[:-1], lengths_K)
    return places, taken_offsets


class InMemorySource:
    """The `BatchSource` of one rank: rows in a new random order each epoch, those of a batch about equally long."""

    def __init__(
        self, training: Histories, validation: Histories | None, batch_rows: int, seed: int, oldest_first: bool = False
    ) -> None:
        """`oldest_first`: rows stand in order of time and come in it, shuffled only among the rows of one pool, so that
        training ends with the newest."""
        self._training, self._validation = training, validation
        self._batch_rows, self._seed, self._oldest_first = batch_rows, seed, oldest_first

    def num_steps(self, epoch: int) -> int:
        return -(-len(self._training) // self._batch_rows)

    def training(self, epoch: int) -> Iterator[HistoryBatch]:
        rng = np.random.default_rng([self._seed, epoch])
        order_B = np.arange(len(self._training)) if self._oldest_first else rng.permutation(len(self._training))
        length_B = self._training.length_B
        pool_rows = POOL_BATCHES * self._batch_rows
        for first in range(0, len(order_B), pool_rows):
            pool = rng.permutation(order_B[first : first + pool_rows])
            pool = pool[np.argsort(-length_B[pool], kind="stable")]
            for begin in rng.permutation(np.arange(0, len(pool), self._batch_rows)):
                yield self._training.batch(pool[begin : begin + self._batch_rows])

    def validation(self) -> Iterator[HistoryBatch]:
        if self._validation is not None:
            for _, batch in self._validation.batches(self._batch_rows):
                yield batch
