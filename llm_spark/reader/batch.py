"""What the reader delivers: batches of tensors that are views of one slab's memory.

Legend: B rows of a batch, N values of all its rows, T the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from .columns import Column, no_rows, values_of
from .plan import IntArray
from .schedule import Slab

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
TextArray = npt.NDArray[np.object_]
_RUN_ROWS = 16_384
"""Rows put in order at a time, one such run ahead: their memory is freed when their last batch is."""


@dataclass(slots=True)
class Ragged:
    """Rows of differing length, end to end: row b is `values_N[offsets_B1[b]:offsets_B1[b + 1]]`.

    The same layout as `torch.nested.nested_tensor_from_jagged(values, offsets)` takes.

    Attributes:
        values: [N], of the column's own type.
        offsets: int64 [B + 1], begins with 0 and ends with N.
    """

    values: torch.Tensor
    offsets: torch.Tensor

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [B]."""
        return self.offsets.diff()

    def padded(self, value: float = 0) -> torch.Tensor:
        """[B, T] with `value` behind each row's end: for the last step before a kernel that needs a rectangle."""
        if self.values.dtype in _SIGNED:
            # torch has the type, and few operations on it. The same bits are a number of the other, up to the sign.
            signed = _SIGNED[self.values.dtype]
            bits = torch.tensor(int(value), dtype=self.values.dtype).view(signed)
            return Ragged(self.values.view(signed), self.offsets).padded(bits.item()).view(self.values.dtype)
        lengths_B = self.lengths
        longest = int(lengths_B.max()) if self.num_rows else 0
        mask_BT = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
        padded_BT = self.values.new_full((self.num_rows, longest), value)
        padded_BT[mask_BT] = self.values
        return padded_BT

    @property
    def padding_share(self) -> float:
        """The share of `padded()` that is padding; 0 where there is nothing."""
        num_cells = self.num_rows * int(self.lengths.max()) if self.num_rows else 0
        return 1.0 - len(self.values) / num_cells if num_cells else 0.0


Tensors = Ragged | torch.Tensor | TextArray


class Batch(Mapping[str, Tensors]):
    """Columns of B rows by name: lists as `Ragged`, numbers and booleans as tensors [B], text as object arrays [B].

    Dates and times are integers in the unit they are stored in. `num_rows` is 0 on a rank that ran out first.
    """

    __slots__ = ("_columns", "num_rows")

    def __init__(self, num_rows: int, columns: dict[str, Tensors]) -> None:
        self.num_rows, self._columns = num_rows, columns

    def __getitem__(self, name: str) -> Tensors:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Batch(num_rows={self.num_rows}, columns={list(self._columns)})"


def batches_of(parts: list[pa.RecordBatch], slab: Slab, columns: Sequence[Column], ahead: Executor) -> Iterator[Batch]:
    """The batches of one slab, as views of the memory of a few; empties `parts`.

    A slab of one part that needs no reordering is passed through without a copy. Rows are put in order one run ahead of
    the one that is delivered, on `ahead`: Arrow releases the GIL, so that the consumer goes on meanwhile.
    """
    joined = _joined(parts)
    runs = list(_runs(slab.starts))
    next_rows = ahead.submit(_rows_of_run, joined, slab, runs[0])
    for number, starts in enumerate(runs):
        rows = next_rows.result()
        if number + 1 < len(runs):
            next_rows = ahead.submit(_rows_of_run, joined, slab, runs[number + 1])
        else:
            del joined, next_rows
        batches = _batches_of_run(rows, starts - starts[0], columns)
        del rows
        batches.reverse()
        while batches:
            yield batches.pop()


def empty_batch(columns: Sequence[Column]) -> Batch:
    """A batch without rows, for a rank that ran out before the others."""
    return _batches_of_run(no_rows(columns).columns, np.zeros(2, dtype=np.int64), columns)[0]


def _rows_of_run(joined: Sequence[pa.Array], slab: Slab, starts: IntArray) -> list[pa.Array]:
    """The rows of one run in order of delivery, column by column."""
    first, last = int(starts[0]), int(starts[-1])
    if slab.order is None:
        return [array.slice(first, last - first) for array in joined]
    order = pa.array(slab.order[first:last])
    return [array.take(order) for array in joined]


def _batches_of_run(rows: Sequence[pa.Array], starts: IntArray, columns: Sequence[Column]) -> list[Batch]:
    names = [column.name for column in columns]
    split = [_split(array, starts, column) for array, column in zip(rows, columns, strict=True)]
    return [
        Batch(num_rows, dict(zip(names, of_batch, strict=True)))
        for num_rows, *of_batch in zip(np.diff(starts).tolist(), *split, strict=True)
    ]


def _joined(parts: list[pa.RecordBatch]) -> list[pa.Array]:
    """The columns of all parts end to end. Each is let go as soon as it is copied, so that only one is held twice."""
    columns = [[part.column(i) for part in parts] for i in range(parts[0].num_columns)]
    parts.clear()
    joined = []
    while columns:
        arrays = columns.pop(0)
        joined.append(arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays))
    return joined


def _runs(starts: IntArray) -> Iterator[IntArray]:
    """The batches' bounds, cut into runs of whole batches with about `_RUN_ROWS` rows."""
    first, num_batches = 0, len(starts) - 1
    while first < num_batches:
        after = int(np.searchsorted(starts, starts[first] + _RUN_ROWS, side="right")) - 1
        last = min(num_batches, max(first + 1, after))
        yield starts[first : last + 1]
        first = last


def _split(array: pa.Array, starts: IntArray, column: Column) -> Sequence[Tensors]:
    if column.kind == "text":
        return np.split(array.to_numpy(zero_copy_only=False).astype(object), starts[1:-1])
    if column.kind == "scalar":
        return _tensor_of(array).split(np.diff(starts).tolist())
    values, offsets = values_of(array, column)
    cuts = offsets[starts]
    # Each batch has its own offsets, from 0 and one longer than its rows; made for all at once.
    num_offsets = np.diff(starts) + 1
    batch_of = np.repeat(np.arange(len(num_offsets)), num_offsets)
    own_offsets = offsets[np.arange(len(batch_of)) - batch_of] - cuts[batch_of]
    return [
        Ragged(values_N, offsets_B1)
        for values_N, offsets_B1 in zip(
            _tensor_of(values).split(np.diff(cuts).tolist()),
            torch.from_numpy(own_offsets).split(num_offsets.tolist()),
            strict=True,
        )
    ]


def _tensor_of(array: pa.Array) -> torch.Tensor:
    if len(array) == 0 or pa.types.is_boolean(array.type):
        return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy())
    # numpy would hand torch a read-only array, which it warns about; DLPack shares the same memory without a word.
    return torch.from_dlpack(array)
