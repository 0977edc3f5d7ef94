"""From a rank's plan to what the workers read and what the consumer joins: pure numpy.

Batches are delivered in *slabs*: a block where rows are shuffled, which needs all its pieces before the first batch
anyhow, else a run of whole batches. A worker reads a piece once and takes from it, for each slab that needs rows of it,
those rows in the order they are stored, mostly without a copy; the consumer joins a slab's parts, and puts some batches'
rows at a time in order of delivery. A part is freed as soon as its slab is joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .plan import IntArray, RankPlan, Rows, take_rows

_UNSHUFFLED_SLAB_ROWS = 16_384


@dataclass(frozen=True)
class Request:
    """What a worker is asked for: of one row group, for each slab, the rows to take."""

    position: int
    group: int
    takes: list[tuple[int, Rows]]

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for _, rows in self.takes)


@dataclass(frozen=True)
class Slab:
    """Some batches: part k holds the rows from piece `positions[k]`, in the order they are stored.

    Row i of the slab is row `order[i]` of its parts laid end to end (row i itself where `order` is None); batch b is
    rows `starts[b]:starts[b + 1]` of the slab.
    """

    index: int
    positions: list[int]
    order: IntArray | None
    starts: IntArray

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])


class Schedule:
    """The requests of a rank from a given step on, and the slabs they make up; in order, made as they are asked for."""

    def __init__(self, plan: RankPlan, first_step: int = 0) -> None:
        self._plan = plan
        self._slabs: list[Slab] = []
        self._takes: dict[int, list[tuple[int, Rows]]] = {}
        self._first_step = first_step
        self._num_slabs = 0
        block_rows = plan.batching.block_rows
        self._slab_rows = block_rows if plan.batching.shuffle else max(1, min(_UNSHUFFLED_SLAB_ROWS, block_rows // 4))
        self._next_block = plan.block_of(first_step) if first_step < plan.num_batches else plan.num_blocks

    def slabs(self) -> Iterator[Slab]:
        """The slabs in order of delivery."""
        while True:
            while self._slabs:
                yield self._slabs.pop(0)
            if self._next_block >= self._plan.num_blocks:
                return
            self._lay_out_next_block()

    def requests(self) -> Iterator[Request]:
        """The pieces to read, in order; a piece of which nothing is left to deliver is skipped."""
        for position, piece in enumerate(self._plan.pieces):
            end = int(self._plan.starts[position + 1])
            while self._next_block < self._plan.num_blocks and self._laid_out_rows < end:
                self._lay_out_next_block()
            takes = self._takes.pop(position, None)
            if takes:
                yield Request(position, piece.group, takes)

    @property
    def _laid_out_rows(self) -> int:
        return self._next_block * self._plan.batching.block_rows

    def _lay_out_next_block(self) -> None:
        plan, number = self._plan, self._next_block
        block = plan.block(number)
        start = number * plan.batching.block_rows
        place_order = block.order - start
        num_rows = len(place_order)
        first_piece = int(np.searchsorted(plan.starts, start, side="right")) - 1
        last_piece = int(np.searchsorted(plan.starts, start + num_rows, side="left"))
        piece_starts = plan.starts[first_piece : last_piece + 1] - start
        first_batch = max(0, self._first_step - plan.first_step(number))
        for low, high in _slab_bounds(block.starts, first_batch, self._slab_rows):
            first, last = block.starts[low], block.starts[high]
            delivered = place_order[first:last]
            # Ascending, so that a worker walks through its row group once; the consumer puts them in order.
            rows = np.arange(num_rows) if last - first == num_rows else np.sort(delivered)
            bounds = np.searchsorted(rows, piece_starts)
            parts = np.flatnonzero(bounds[1:] > bounds[:-1])
            positions = (first_piece + parts).tolist()
            for part, position in zip(parts, positions, strict=True):
                taken = rows[bounds[part] : bounds[part + 1]] - piece_starts[part]
                take = take_rows(plan.pieces[position].rows, taken)
                self._takes.setdefault(position, []).append((self._num_slabs, _as_range(take)))
            order = None
            if not bool((delivered[1:] > delivered[:-1]).all()):
                order = delivered if len(rows) == num_rows else np.searchsorted(rows, delivered)
            self._slabs.append(Slab(self._num_slabs, positions, order, block.starts[low : high + 1] - first))
            self._num_slabs += 1
        self._next_block += 1


def _slab_bounds(starts: IntArray, first_batch: int, slab_rows: int) -> Iterator[tuple[int, int]]:
    low, num_batches = first_batch, len(starts) - 1
    while low < num_batches:
        high = min(num_batches, int(np.searchsorted(starts, starts[low] + slab_rows, side="left")))
        yield low, high
        low = high


def _as_range(rows: IntArray) -> Rows:
    """A range where the rows are consecutive: those are sliced, not copied."""
    if rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return range(int(rows[0]), int(rows[-1]) + 1)
    return rows
