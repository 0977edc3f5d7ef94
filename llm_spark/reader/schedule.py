"""From a rank's plan to what the workers read and what the consumer joins: pure numpy.

Batches are delivered in *slabs*, runs of whole batches of one block with about a quarter of its rows. A worker reads a
piece once and takes from it, for each slab that needs rows of it, those rows in order of delivery; the consumer joins a
slab's parts and slices batches off. So the random access happens in the workers, and a part is freed as soon as its
slab is joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan import IntArray, RankPlan, Rows, take_rows

_MAX_SLAB_ROWS = 16_384


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
    """Some batches: part k holds the rows from piece `positions[k]`, in order of delivery.

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
        self._slab_rows = max(1, min(_MAX_SLAB_ROWS, plan.batching.block_rows // 4))
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
        first_piece, part_of_block = _parts_of(plan.starts, start, start + len(block.order))
        first_batch = max(0, self._first_step - plan.first_step(number))
        for low, high in _slab_bounds(block.starts, first_batch, self._slab_rows):
            rows = block.order[block.starts[low] : block.starts[high]]
            part_of = part_of_block[rows - start]
            order = None
            if not bool((part_of[1:] >= part_of[:-1]).all()):
                by_part = np.argsort(part_of, kind="stable")
                rows = rows[by_part]
                order = np.empty_like(by_part)
                order[by_part] = np.arange(len(by_part))
            num_rows = np.bincount(part_of)
            parts = np.flatnonzero(num_rows)
            positions = (first_piece + parts).tolist()
            for position, taken in zip(positions, np.split(rows, np.cumsum(num_rows[parts])[:-1]), strict=True):
                take = take_rows(plan.pieces[position].rows, taken - plan.starts[position])
                self._takes.setdefault(position, []).append((self._num_slabs, _as_range(take)))
            self._slabs.append(
                Slab(self._num_slabs, positions, order, block.starts[low : high + 1] - block.starts[low])
            )
            self._num_slabs += 1
        self._next_block += 1


def _parts_of(piece_starts: IntArray, start: int, stop: int) -> tuple[int, npt.NDArray[np.integer[Any]]]:
    """The piece that `start` stands in, and for each row of the stretch which piece from that one on it stands in."""
    first = int(np.searchsorted(piece_starts, start, side="right")) - 1
    last = int(np.searchsorted(piece_starts, stop, side="left"))
    cuts: IntArray = np.clip(piece_starts[first : last + 1], start, stop)
    # 16 bits where they do: numpy sorts those by radix.
    part: IntArray = np.arange(last - first)
    return first, np.repeat(part.astype(np.uint16) if last - first < 1 << 16 else part, cuts[1:] - cuts[:-1])


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
