"""The kernel of all baselines: what was learned in, then test rows in, ranks and lists out, in numpy and Arrow. It needs no Spark.

Array suffixes: V by token, I items of the vocabulary, C candidates, one row's tokens T, K list length, N flattened.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm_spark.tokens import FIRST_ITEM_TOKEN

ITEMS, LEARNED, TEST = 0, 1, 2
"""Kinds of rows, in the order in which the kernel gets them."""
ROWS_PER_BATCH = 256
"""Test rows whose ranks leave the kernel together; with the rows' length and the list's it bounds what waits in memory."""

RANKS_DDL = (
    "sequence_id string, user_id string, position int, session_position int, token int, rank int, top array<int>"
)
_RANKS_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.string()),
        ("user_id", pa.string()),
        ("position", pa.int32()),
        ("session_position", pa.int32()),
        ("token", pa.int32()),
        ("rank", pa.int32()),
        ("top", pa.list_(pa.int32())),
    ]
)

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Popularity:
    """The order in which items stand that a baseline says nothing about."""

    level_V: Ints
    """By token: the higher the more popular, the same for items that are equally so; -1 for what is no item of the vocabulary."""
    order_I: Ints
    """All items, most popular first, ties by token."""
    num_at_least_V: Ints
    """By token: the number of items at least as popular, itself included."""

    @classmethod
    def of(cls, tokens_I: Ints, counts_I: Doubles, tie_breaks_I: Doubles) -> Popularity:
        """By count, and where counts are equal by tie break."""
        order = np.lexsort((tokens_I, -tie_breaks_I, -counts_I))
        sorted_counts, sorted_breaks = counts_I[order], tie_breaks_I[order]
        differs = (np.diff(sorted_counts) != 0) | (np.diff(sorted_breaks) != 0)
        steps_I = np.concatenate([[0], np.cumsum(differs)]) if len(order) else np.zeros(0, np.int64)
        level_V = np.full(int(tokens_I.max(initial=0)) + 1, -1, np.int64)
        num_at_least_V = np.zeros_like(level_V)
        if len(order):
            level_V[tokens_I[order]] = steps_I[-1] - steps_I
            num_at_least_V[tokens_I[order]] = np.searchsorted(steps_I, steps_I, side="right")
        return cls(level_V, tokens_I[order], num_at_least_V)

    def has(self, tokens: Ints) -> NDArray[np.bool_]:
        """Which of these tokens are items of the vocabulary."""
        inside = (tokens >= 0) & (tokens < len(self.level_V))
        return inside & (self.level_V[np.where(inside, tokens, 0)] >= 0)

    def place(self, target: int, tokens_C: Ints, scores_C: Doubles, list_length: int) -> tuple[int, Ints]:
        """The target's rank among all items, 0 where it is none, and the first `list_length` items; ties count against the target.

        `tokens_C` are different from one another; those outside the vocabulary are left out.
        """
        fits = self.has(tokens_C)
        if not fits.all():
            tokens_C, scores_C = tokens_C[fits], scores_C[fits]
        return self._rank(target, tokens_C, scores_C), self._top(tokens_C, scores_C, list_length)

    def _rank(self, target: int, tokens_C: Ints, scores_C: Doubles) -> int:
        if not 0 <= target < len(self.level_V) or self.level_V[target] < 0:
            return 0
        as_popular_C = self.level_V[tokens_C] >= self.level_V[target]
        own = np.flatnonzero(tokens_C == target)
        if len(own) == 0:
            return len(tokens_C) + int(self.num_at_least_V[target] - as_popular_C.sum())
        score = scores_C[own[0]]
        return int(((scores_C > score) | ((scores_C == score) & as_popular_C)).sum())

    def _top(self, tokens_C: Ints, scores_C: Doubles, list_length: int) -> Ints:
        if len(tokens_C) > list_length:
            kept = scores_C >= np.partition(scores_C, -list_length)[-list_length]
            tokens_C, scores_C = tokens_C[kept], scores_C[kept]
        best_first = np.lexsort((tokens_C, -self.level_V[tokens_C], -scores_C))[:list_length]
        if len(best_first) == list_length:
            return tokens_C[best_first]
        others = self.order_I[: list_length + len(tokens_C)]
        others = others[~np.isin(others, tokens_C)]
        return np.concatenate([tokens_C[best_first], others])[:list_length]


@dataclass(frozen=True)
class History:
    """One test row."""

    tokens_T: Ints
    session_starts: Ints

    def session(self, position: int) -> int:
        """The number of the session in which this position stands."""
        return int(np.searchsorted(self.session_starts, position, side="right")) - 1

    def session_so_far(self, position: int) -> Ints:
        """Known items of the position's session before it, oldest first."""
        return _known(self.tokens_T[self.session_starts[self.session(position)] : position])

    def query(self, position: int) -> Ints:
        """Known items of the session so far; where there are none, those of the session before it."""
        so_far = self.session_so_far(position)
        session = self.session(position)
        if len(so_far) or session == 0:
            return so_far
        return _known(self.tokens_T[self.session_starts[session - 1] : self.session_starts[session]])

    def seen(self, position: int) -> Ints:
        """Known items of the whole row before the position, oldest first."""
        return _known(self.tokens_T[:position])


def _known(tokens: Ints) -> Ints:
    return tokens[tokens >= FIRST_ITEM_TOKEN]


class Recommender(Protocol):
    """What a baseline scores at a position: different tokens, and their scores."""

    def candidates(self, history: History, position: int) -> tuple[Ints, Doubles]: ...


@dataclass(frozen=True)
class Items:
    """The vocabulary, and two numbers of each item: the first orders them by popularity, the second is the baseline's own."""

    tokens_I: Ints
    numbers_I: Doubles
    more_numbers_I: Doubles

    @classmethod
    def of(cls, blocks: Iterable[pa.RecordBatch]) -> Items:
        """From rows of tokens, numbers, more_numbers, each a block of the vocabulary."""
        columns = [
            (
                batch.column("tokens").flatten(),
                batch.column("numbers").flatten(),
                batch.column("more_numbers").flatten(),
            )
            for batch in blocks
        ]
        tokens, numbers, more_numbers = (
            np.concatenate([np.zeros(0), *(column.to_numpy() for column in one)])
            for one in (zip(*columns, strict=True) if columns else ((), (), ()))
        )
        return cls(tokens.astype(np.int64), numbers, more_numbers)


Build = Callable[[Items, Iterator[pa.RecordBatch]], tuple[Popularity, Recommender]]
"""Makes a recommender of what was learned: rows that the baseline's own transform sent, in the order of ended_at, sequence_id, start."""


def rank_batches(batches: Iterator[pa.RecordBatch], build: Build, list_length: int) -> Iterator[pa.RecordBatch]:
    """Ranks and lists (RANKS_DDL) of every predicted position of the test rows.

    In, sorted by kind: rows of ITEMS (tokens, numbers, more_numbers), of LEARNED (as `build` reads them), of TEST (sequence_id, user_id,
    tokens, session_starts, start: the first position that is predicted). What `build` keeps of the first two is held in memory, no more.
    """
    items, placed = Items.of([]), None
    for kind, slices in itertools.groupby(_slices_of_a_kind(batches), key=operator.itemgetter(0)):
        rows = (part for _, part in slices)
        if kind == ITEMS:
            items = Items.of(rows)
        elif kind == LEARNED:
            placed = build(items, rows)
        else:
            placed = placed or build(items, iter(()))
            for part in rows:
                for first in range(0, part.num_rows, ROWS_PER_BATCH):
                    yield _ranks(part.slice(first, ROWS_PER_BATCH), *placed, list_length)


def _slices_of_a_kind(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in batches:
        edges = np.searchsorted(batch.column("kind").to_numpy(), [ITEMS, LEARNED, TEST, TEST + 1])
        for kind, begin, end in zip((ITEMS, LEARNED, TEST), edges, edges[1:], strict=False):
            if begin < end:
                yield kind, batch.slice(begin, end - begin)


def _ranks(rows: pa.RecordBatch, popularity: Popularity, recommender: Recommender, list_length: int) -> pa.RecordBatch:
    tokens, starts = rows.column("tokens"), rows.column("session_starts")
    first_targets = rows.column("start").to_numpy()
    num_positions = np.zeros(rows.num_rows, np.int64)
    positions, session_positions, targets, ranks, tops = [], [], [], [], []
    for row in range(rows.num_rows):
        history = History(_list(tokens, row), _list(starts, row))
        places = range(int(first_targets[row]), len(history.tokens_T))
        num_positions[row] = len(places)
        for position in places:
            target = int(history.tokens_T[position])
            rank, top_K = popularity.place(target, *recommender.candidates(history, position), list_length)
            positions.append(position)
            session_positions.append(position - int(history.session_starts[history.session(position)]))
            targets.append(target)
            ranks.append(rank)
            tops.append(top_K)
    row_P = pa.array(np.repeat(np.arange(rows.num_rows), num_positions))
    list_offsets = np.concatenate([[0], np.cumsum([len(top_K) for top_K in tops])])
    listed_N = np.concatenate([np.zeros(0, np.int64), *tops])
    ranks_P = np.array(ranks, np.int32)
    return pa.RecordBatch.from_arrays(
        [
            rows.column("sequence_id").take(row_P),
            rows.column("user_id").take(row_P),
            pa.array(positions, pa.int32()),
            pa.array(session_positions, pa.int32()),
            pa.array(targets, pa.int32()),
            pa.array(ranks_P, pa.int32(), mask=ranks_P == 0),
            pa.ListArray.from_arrays(pa.array(list_offsets, pa.int32()), pa.array(listed_N, pa.int32())),
        ],
        schema=_RANKS_SCHEMA,
    )


def _list(column: pa.ListArray, row: int) -> Ints:
    return column[row].values.to_numpy().astype(np.int64)
