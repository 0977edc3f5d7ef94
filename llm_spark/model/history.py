"""A batch of user histories, ragged: what every stage hands to the model.

Shape suffixes: B rows (user histories), N tokens of all rows, S sessions of all rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HistoryBatch:
    """B histories laid end to end; no padding is stored.

    The tensors of the steps (`tokens_N`, `event_types_N`, `values_N`) move to the device. Offsets and times stay on
    the host, because the order in which the model walks through the sessions is planned there.
    """

    tokens_N: Tensor
    """int64: 1 unknown, items from 2; 0 (padding) never occurs."""
    event_types_N: Tensor
    """int64, coded as the tokens are."""
    values_N: Tensor
    """float32, NaN where an event has no value."""
    event_times_N: Tensor
    """int64, epoch seconds, on the host."""
    row_offsets: Tensor
    """int64 [B+1], on the host: row b is tokens[row_offsets[b]:row_offsets[b+1]]."""
    session_offsets: Tensor
    """int64 [S+1], on the host: global positions of the sessions' beginnings, then N."""
    first_target_B: Tensor
    """int64, on the host: position in the row from which on tokens are predicted, at least 1."""

    @classmethod
    def from_columns(
        cls,
        tokens: Tensor,
        token_offsets: Tensor,
        event_types: Tensor,
        values: Tensor,
        event_times: Tensor,
        session_starts: Tensor,
        session_start_offsets: Tensor,
        first_target: Tensor,
    ) -> HistoryBatch:
        """Build a batch from the flat list columns of the sequences table and their offsets.

        `session_starts` are positions within each row, as stored. Raises ValueError when the sessions of a row do
        not begin at its first token, do not rise, or end outside it, and when a column is not as long as `tokens`.
        """
        row_offsets = token_offsets.to(torch.int64)
        starts_offsets = session_start_offsets.to(torch.int64)
        num_tokens_B = row_offsets.diff()
        num_sessions_B = starts_offsets.diff()
        for name, column in (("event_types", event_types), ("values", values), ("event_times", event_times)):
            if column.numel() != tokens.numel():
                raise ValueError(f"column {name} holds {column.numel()} steps where tokens holds {tokens.numel()}")
        sessions_S = session_starts.to(torch.int64) + torch.repeat_interleave(row_offsets[:-1], num_sessions_B)
        session_offsets = torch.cat([sessions_S, row_offsets[-1:]])
        filled = num_tokens_B > 0
        if bool((filled != (num_sessions_B > 0)).any()):
            raise ValueError("column session_starts is empty where tokens is not, or the other way round")
        first_starts = sessions_S[starts_offsets[:-1][filled]]
        if bool((first_starts != row_offsets[:-1][filled]).any()) or bool((session_offsets.diff() <= 0).any()):
            raise ValueError(
                "column session_starts must begin with 0 and rise within each row, below the number of tokens"
            )
        return cls(
            tokens_N=tokens.to(torch.int64),
            event_types_N=event_types.to(torch.int64),
            values_N=values.to(torch.float32),
            event_times_N=event_times.to(torch.int64),
            row_offsets=row_offsets,
            session_offsets=session_offsets,
            first_target_B=first_target.to(torch.int64),
        )

    @property
    def num_rows(self) -> int:
        return self.row_offsets.numel() - 1

    @property
    def num_tokens(self) -> int:
        return self.tokens_N.numel()

    @property
    def num_sessions(self) -> int:
        return self.session_offsets.numel() - 1

    def rows(self, first: int, last: int) -> HistoryBatch:
        """The histories `first` to `last - 1`, without a copy of their steps."""
        row_offsets = self.row_offsets[first : last + 1]
        begin, end = int(row_offsets[0]), int(row_offsets[-1])
        inside = (self.session_offsets >= begin) & (self.session_offsets < end)
        # The shape suffix of a column says whether it has an entry for each step or for each row.
        dimension = {entry.name: entry.name.rpartition("_")[2][:1] for entry in dataclasses.fields(self)}
        columns = {name: getattr(self, name)[begin:end] for name in dimension if dimension[name] == "N"}
        columns |= {name: getattr(self, name)[first:last] for name in dimension if dimension[name] == "B"}
        session_offsets = torch.cat([self.session_offsets[inside], row_offsets[-1:]]) - begin
        return dataclasses.replace(self, **columns, row_offsets=row_offsets - begin, session_offsets=session_offsets)

    def parts(self, num_parts: int) -> list[HistoryBatch]:
        """Cut between rows into at most `num_parts` batches of about equally many steps each; none is empty."""
        wanted = torch.arange(1, num_parts) * self.num_tokens // num_parts
        inner = torch.searchsorted(self.row_offsets, wanted).tolist()
        bounds = sorted({0, *inner, self.num_rows})
        return [part for first, last in itertools.pairwise(bounds) if (part := self.rows(first, last)).num_tokens]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> HistoryBatch:
        """The same batch with its step tensors on `device`."""
        return dataclasses.replace(
            self,
            tokens_N=self.tokens_N.to(device, non_blocking=non_blocking),
            event_types_N=self.event_types_N.to(device, non_blocking=non_blocking),
            values_N=self.values_N.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> HistoryBatch:
        """The same batch with its step tensors in page-locked memory, so that `.to(device, non_blocking=True)` overlaps."""
        return dataclasses.replace(
            self,
            tokens_N=self.tokens_N.pin_memory(),
            event_types_N=self.event_types_N.pin_memory(),
            values_N=self.values_N.pin_memory(),
        )
