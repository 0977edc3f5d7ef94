"""Which rank reads which rows in which order: pure numpy, no file is touched.

An epoch lays all rows on one *line*: the row groups in an order drawn from (seed, epoch), the rows inside a group as
stored. The line is cut into one stretch for each rank, which differ by at most one row; a row group on a cut is read by
both ranks. A rank cuts its stretch into *blocks* of `buffer_rows` rows, the bounded shuffle buffer, and mixes rows
inside a block only. So every row stands in exactly one batch of one rank, and the order depends on (seed, epoch, world
size) alone.

How far this is from a full shuffle: rows of one block are mixed fully, so two rows that are neighbours in the table
share a batch N / buffer_rows times as often as under a full shuffle of a stretch of N rows, and a batch holds rows of
the few row groups that make up its block. Of 400,000 rows in 20 row groups, one rank, batches of 256 and the default
buffer of 65,536: neighbours share a batch 6.8 times as often (44 of 10,000 pairs do), a batch holds rows of 4.1 row
groups, and a row's place in the table tells nothing of its place in the epoch (rank correlation 0.09, of 20 groups drawn).
`python -m tests.benchmarks.reader` measures all three. A table whose neighbouring row groups are alike loses nothing by
it, as row groups are drawn over the whole epoch; a larger `buffer_rows` mixes more, for its memory.

Every rank takes as many steps as the longest; a rank that has run out takes empty batches. A *phase* is a run of steps
at one world size; an epoch that was interrupted is the list of its phases, from which the rows that remain follow
without reading anything.

Randomness is the stream of PCG64, shuffled by numpy's RandomState, both of which numpy promises never to change (NEP 19;
unlike Generator.permutation), so a state written today resumes under another numpy.

Legend: R row groups, N rows of a block, B batches of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = "range | IntArray"


@dataclass(frozen=True)
class Piece:
    """Rows of one row group, by their index in it: a range, or (after a resume) the indices of those that remain."""

    group: int
    rows: Rows


@dataclass(frozen=True)
class Phase:
    """`num_steps` steps were taken by all `world_size` ranks."""

    world_size: int
    num_steps: int


@dataclass(frozen=True)
class Batching:
    """How a block becomes batches: by number of rows, or by a token budget (rows x longest row <= batch_tokens).

    With `bucket`, rows of like length share a batch, and the batches' order is drawn. Without `shuffle`, rows keep theirs.
    """

    batch_rows: int | None
    batch_tokens: int | None
    buffer_rows: int
    shuffle: bool
    bucket: bool

    @property
    def block_rows(self) -> int:
        """Rows of a block: `buffer_rows`, or as many whole batches as fit in it, so that only a rank's last batch is
        short.
        """
        if self.batch_rows is None:
            return self.buffer_rows
        return max(1, self.buffer_rows // self.batch_rows) * self.batch_rows


@dataclass(frozen=True)
class Block:
    """Rows of a rank's stretch in the order of delivery: batch b is `order[starts[b]:starts[b + 1]]`."""

    order: IntArray
    starts: IntArray

    @property
    def num_batches(self) -> int:
        return len(self.starts) - 1


def random_order(num: int, *key: int) -> IntArray:
    """A permutation of 0..num-1 drawn from the key alone."""
    bits = np.random.PCG64(np.random.SeedSequence(list(key)))
    return np.random.RandomState(bits).permutation(num).astype(np.int64, copy=False)


def rank_stretch(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where on the line of `num_rows` rows the stretch of `rank` begins and ends."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def cut(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """The pieces of the line between two positions."""
    out, position = [], 0
    for piece in pieces:
        size = len(piece.rows)
        first, last = max(start - position, 0), min(stop - position, size)
        if first < last:
            out.append(Piece(piece.group, piece.rows[first:last]))
        position += size
        if position >= stop:
            break
    return out


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The same line, with the neighbouring pieces of a row group as one, so that it is read once.

    They stand side by side however often the ranks' number changed, for what remains keeps its order.
    """
    return [
        of_group[0] if len(of_group) == 1 else Piece(group, np.concatenate([indices(piece.rows) for piece in of_group]))
        for group, of_group in ((group, list(run)) for group, run in groupby(pieces, attrgetter("group")))
    ]


def num_rows_of(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.rows) for piece in pieces)


class EpochPlan:
    """All ranks' rows of one epoch, or of what remains of it after some phases.

    Args:
        group_rows: rows of each row group, in the order of the snapshot.
        batching: how rows become batches.
        seed, epoch: the two numbers that the order is drawn from.
        world_size: ranks that share the rows from here on.
        lengths: for each row group the tokens of each row; needed for a token budget and for bucketing.
        phases: what was already delivered of this epoch, oldest first.
    """

    def __init__(
        self,
        group_rows: Sequence[int],
        batching: Batching,
        seed: int,
        epoch: int,
        world_size: int,
        lengths: Sequence[npt.NDArray[np.int32]] | None = None,
        phases: Sequence[Phase] = (),
    ) -> None:
        self.batching, self.seed, self.epoch, self.world_size = batching, seed, epoch, world_size
        self.lengths = lengths
        self.num_phases = len(phases)
        if phases:
            *earlier, last = phases
            before = EpochPlan(group_rows, batching, seed, epoch, last.world_size, lengths, earlier)
            self.pieces = _merged(before.remaining(last.num_steps))
        else:
            order = random_order(len(group_rows), seed, epoch) if batching.shuffle else range(len(group_rows))
            self.pieces = [Piece(int(g), range(int(group_rows[g]))) for g in order if group_rows[g]]
        self.num_rows = num_rows_of(self.pieces)

        self._ranks: dict[int, RankPlan] = {}

    def rank(self, rank: int) -> RankPlan:
        """The stretch of one rank."""
        if rank not in self._ranks:
            start, stop = rank_stretch(self.num_rows, rank, self.world_size)
            key = (self.seed, self.epoch, self.num_phases, rank)
            self._ranks[rank] = RankPlan(cut(self.pieces, start, stop), self.batching, key, self.lengths)
        return self._ranks[rank]

    @property
    def num_steps(self) -> int:
        """Steps that every rank takes: the number of batches of the rank that has most."""
        if self.batching.batch_rows is not None:
            longest = -(-self.num_rows // self.world_size)
            return -(-longest // self.batching.batch_rows)
        return max(self.rank(rank).num_batches for rank in range(self.world_size))

    def remaining(self, num_steps: int) -> list[Piece]:
        """The rows that no rank has delivered after `num_steps` steps, rank after rank."""
        return [piece for rank in range(self.world_size) for piece in self.rank(rank).remaining(num_steps)]


class RankPlan:
    """One rank's stretch: its pieces, and the blocks of batches they are delivered in."""

    def __init__(
        self,
        pieces: list[Piece],
        batching: Batching,
        key: tuple[int, ...],
        lengths: Sequence[npt.NDArray[np.int32]] | None,
    ) -> None:
        self.pieces, self.batching = pieces, batching
        self._key, self._lengths = key, lengths
        self.starts: IntArray = np.cumsum([0] + [len(piece.rows) for piece in pieces], dtype=np.int64)
        self.num_rows = int(self.starts[-1])
        self.num_blocks = -(-self.num_rows // batching.block_rows)

    @property
    def num_batches(self) -> int:
        return self.first_step(self.num_blocks)

    def first_step(self, block: int) -> int:
        """The step at which a block begins."""
        batch_rows = self.batching.batch_rows
        if batch_rows is not None:
            return -(-min(block * self.batching.block_rows, self.num_rows) // batch_rows)
        return int(self._first_steps[block])

    @cached_property
    def _first_steps(self) -> IntArray:
        return np.cumsum([0] + [self.block(b).num_batches for b in range(self.num_blocks)], dtype=np.int64)

    def block(self, block: int) -> Block:
        """The delivery order of one block; `order` holds positions on this rank's stretch."""
        batching = self.batching
        start = block * batching.block_rows
        num = min(batching.block_rows, self.num_rows - start)
        lengths_N = self._lengths_of(start, start + num) if self._lengths is not None else None
        order_N = random_order(num, *self._key, block) if batching.shuffle else np.arange(num)
        if batching.shuffle and batching.bucket:
            assert lengths_N is not None
            order_N = order_N[np.argsort(lengths_N[order_N], kind="stable")]
        if batching.batch_rows is not None:
            starts = np.append(np.arange(0, num, batching.batch_rows), num)
        else:
            assert lengths_N is not None
            assert batching.batch_tokens is not None
            starts = budget_starts(lengths_N[order_N], batching.batch_tokens)
        if batching.shuffle and batching.bucket:
            order_N, starts = _shuffle_batches(order_N, starts, random_order(len(starts) - 1, *self._key, block, 1))
        return Block(order_N + start, starts)

    def remaining(self, num_steps: int) -> list[Piece]:
        """The pieces that are left after `num_steps` batches, in the order of the stretch."""
        if num_steps >= self.num_batches:
            return []
        block = self.block_of(num_steps)
        order = self.block(block)
        left = np.sort(order.order[order.starts[num_steps - self.first_step(block)] :])
        out = []
        for i in np.unique(np.searchsorted(self.starts, left, side="right") - 1):
            rows = left[(left >= self.starts[i]) & (left < self.starts[i + 1])] - self.starts[i]
            out.append(Piece(self.pieces[i].group, take_rows(self.pieces[i].rows, rows)))
        return out + cut(self.pieces, (block + 1) * self.batching.block_rows, self.num_rows)

    def padding_share(self) -> float:
        """The share of padding if each batch were padded to its longest row; needs lengths."""
        num_tokens = num_cells = 0
        for number in range(self.num_blocks):
            block, start = self.block(number), number * self.batching.block_rows
            lengths_N = self._lengths_of(start, start + len(block.order))[block.order - start]
            num_tokens += int(lengths_N.sum())
            num_cells += int((np.maximum.reduceat(lengths_N, block.starts[:-1]) * np.diff(block.starts)).sum())
        return 1.0 - num_tokens / num_cells if num_cells else 0.0

    def block_of(self, step: int) -> int:
        """The block that holds the batch of `step`."""
        if self.batching.batch_rows is not None:
            return step * self.batching.batch_rows // self.batching.block_rows
        return int(np.searchsorted(self._first_steps, step, side="right")) - 1

    def _lengths_of(self, start: int, stop: int) -> IntArray:
        assert self._lengths is not None
        pieces = cut(self.pieces, start, stop)
        return np.concatenate([take_lengths(self._lengths[p.group], p.rows) for p in pieces]).astype(np.int64)


def take_rows(rows: Rows, index: IntArray) -> IntArray:
    """`rows[index]` for a range or an array."""
    return index + rows.start if isinstance(rows, range) else rows[index]


def indices(rows: Rows) -> IntArray:
    return np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows


def take_lengths(lengths: npt.NDArray[np.int32], rows: Rows) -> npt.NDArray[np.int32]:
    return lengths[rows.start : rows.stop] if isinstance(rows, range) else lengths[rows]


def budget_starts(lengths_N: IntArray, batch_tokens: int) -> IntArray:
    """Cut rows, in their order, into batches whose rows x longest row stay within the budget.

    A row counts as at least one token. A row that is longer than the budget is a batch of its own.
    """
    lengths_N = np.maximum(lengths_N, 1)
    starts, start, num = [0], 0, len(lengths_N)
    while start < num:
        # No batch holds more rows than the budget allows at the length of its first row.
        window = lengths_N[start : start + max(1, batch_tokens // int(lengths_N[start]))]
        cost = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
        start += max(1, int(np.searchsorted(cost, batch_tokens, side="right")))
        starts.append(start)
    return np.array(starts, dtype=np.int64)


def _shuffle_batches(order_N: IntArray, starts: IntArray, batch_order: IntArray) -> tuple[IntArray, IntArray]:
    batches = [order_N[starts[b] : starts[b + 1]] for b in batch_order]
    sizes = np.diff(starts)[batch_order]
    return np.concatenate([order_N[:0], *batches]), np.concatenate([[0], np.cumsum(sizes)])
