"""What is left of the sessions that stand before a batch's rows: enough to go on from there as if they stood in the rows.

    memory of a history = memory of its later sessions, begun at the past that its earlier sessions leave

Shape suffixes: B rows, M memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Opening:
    """What the accounts of rows begin with (`HistoryBatch.account`): what the users had done before the rows' first tokens. On the host."""

    num_sessions_B: Tensor
    """int64: sessions before the row's first one."""
    first_time_B: Tensor
    """int64, epoch seconds: the user's first event, that of the row where nothing stands before it."""
    latest_time_B: Tensor
    """int64, epoch seconds: the latest event before the row; where there is none, as `first_time_B`."""
    spent_B: Tensor
    """float64: sum of the values that were there."""

    @classmethod
    def from_columns(cls, num_sessions: Tensor, first_times: Tensor, latest_times: Tensor, spent: Tensor) -> Opening:
        """From OPENING_COLUMNS of the table sequences."""
        return cls(num_sessions.long(), first_times.long(), latest_times.long(), spent.double())

    @classmethod
    def of_newcomers(cls, began_B: Tensor) -> Opening:
        """Of rows that begin their users' histories, at these times."""
        return cls(torch.zeros_like(began_B), began_B, began_B, torch.zeros(len(began_B)).double())

    def rows(self, first: int, last: int) -> Opening:
        """Those of the rows `first` to `last - 1`."""
        return self.of(torch.arange(first, last))

    def of(self, row_R: Tensor) -> Opening:
        """Those of these rows."""
        return Opening(*(getattr(self, entry.name)[row_R] for entry in dataclasses.fields(self)))


@dataclass(frozen=True)
class Past:
    """The users' pasts before the first sessions of their rows. The vectors move to the device, the rest stays on the host."""

    memory_BM: Tensor
    """float32: the long-term memory after the past sessions; that of newcomers where there are none."""
    num_sessions_B: Tensor
    """int64: the past sessions; 0 is a newcomer, for whom the times below mean nothing."""
    first_time_B: Tensor
    """int64, epoch seconds: the user's first event."""
    previous_time_B: Tensor
    """int64, epoch seconds: the last event of the last past session, from which the gap before the row's first event counts."""
    latest_time_B: Tensor
    """int64, epoch seconds: the latest past event; where sessions overlap it may stand before the previous one."""
    spent_B: Tensor
    """float64: sum of the values that were there."""

    @classmethod
    def newcomers(cls, memory_BM: Tensor) -> Past:
        """Users without a past; `memory_BM` is what the model begins them with."""
        nothing_B = torch.zeros(len(memory_BM), dtype=torch.int64)
        return cls(memory_BM, nothing_B, nothing_B, nothing_B, nothing_B, torch.zeros(len(memory_BM)).double())

    @property
    def is_known_B(self) -> Tensor:
        """bool: whether there is a past at all."""
        return self.num_sessions_B > 0

    def opening(self, began_B: Tensor) -> Opening:
        """What the accounts of rows that go on from here begin with; `began_B` are the times of their first events."""
        first_B = torch.where(self.is_known_B, self.first_time_B, began_B)
        latest_B = torch.where(self.is_known_B, self.latest_time_B, began_B)
        return Opening(self.num_sessions_B, first_B, latest_B, self.spent_B)

    def rows(self, first: int, last: int) -> Past:
        """The pasts of the rows `first` to `last - 1`."""
        return self.of(torch.arange(first, last))

    def of(self, row_R: Tensor) -> Past:
        """The pasts of these rows, which are counted on the host."""
        columns = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return Past(**{name: column[row_R.to(column.device)] for name, column in columns.items()})

    def with_rows(self, row_R: Tensor, pasts: Past) -> Past:
        """The same, with these pasts in place of those rows'."""
        names = [entry.name for entry in dataclasses.fields(self)]
        return Past(**{name: getattr(self, name).index_copy(0, row_R, getattr(pasts, name)) for name in names})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Past:
        return dataclasses.replace(self, memory_BM=self.memory_BM.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Past:
        return dataclasses.replace(self, memory_BM=self.memory_BM.pin_memory())
