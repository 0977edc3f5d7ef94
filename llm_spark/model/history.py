"""A batch of user histories, ragged: what every stage hands to the model.

Shape suffixes: B rows (user histories), N tokens of all rows, S sessions of all rows, F further features of an event.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_spark.model.outcomes import Moments, account_numbers
from llm_spark.model.past import Opening, Past


def stretches(begins: Tensor, ends: Tensor) -> Tensor:
    """begins[0], begins[0] + 1, ..., ends[0] - 1, begins[1], ...: the positions of all stretches, end to end."""
    lengths = ends - begins
    return torch.arange(int(lengths.sum())) + torch.repeat_interleave(begins - _offsets(lengths)[:-1], lengths)


@dataclass(frozen=True)
class HistoryBatch:
    """B histories laid end to end; no padding is stored.

    The tensors of the steps (`tokens_N`, `event_types_N`, `values_N`, `features_NF`) and of the moments move to the device. Offsets and times stay on
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
    features_NF: Tensor
    """float32: further numbers of each event, NaN where one is missing; F may be 0."""
    moments: Moments | None = None
    """What is asked of the histories' outcomes."""
    past: Past | None = None
    """What came before the rows; not given, nothing did."""
    opening: Opening | None = None
    """What came before them as the account alone counts it: for rows that begin in the middle of a history with no past of the model's own.
    Not given, it is that of `past`."""

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
        features: Tensor | None = None,
        num_features: int = 0,
    ) -> HistoryBatch:
        """Build a batch from the flat list columns of the sequences table and their offsets.

        `session_starts` are positions within each row, as stored; `features` holds `num_features` numbers an event,
        event by event. Raises ValueError when the sessions of a row do
        not begin at its first token, do not rise, or end outside it, and when a column is not as long as `tokens`.
        """
        row_offsets = token_offsets.to(torch.int64)
        starts_offsets = session_start_offsets.to(torch.int64)
        num_tokens_B = row_offsets.diff()
        num_sessions_B = starts_offsets.diff()
        for name, column in (("event_types", event_types), ("values", values), ("event_times", event_times)):
            if column.numel() != tokens.numel():
                raise ValueError(f"column {name} holds {column.numel()} steps where tokens holds {tokens.numel()}")
        num_numbers = 0 if features is None else features.numel()
        if num_numbers != tokens.numel() * num_features:
            raise ValueError(
                f"column features holds {num_numbers} numbers where {num_features} for each of {tokens.numel()} steps are asked"
            )
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
            features_NF=(values.new_zeros(0) if features is None else features)
            .to(torch.float32)
            .view(tokens.numel(), num_features),
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
        moments = self.moments.between(begin, end) if self.moments is not None else None
        return dataclasses.replace(
            self,
            **columns,
            row_offsets=row_offsets - begin,
            session_offsets=session_offsets,
            moments=moments,
            past=self.past and self.past.rows(first, last),
            opening=self.opening and self.opening.rows(first, last),
        )

    @property
    def first_session_B(self) -> Tensor:
        """int64 [B+1]: the first session of each row among all sessions, then S."""
        return torch.searchsorted(self.session_offsets[:-1].contiguous(), self.row_offsets)

    def sessions(self, row_R: Tensor, first_R: Tensor, last_R: Tensor) -> HistoryBatch:
        """Of each of these rows its sessions from the `first` to the one before the `last`, counted in the row; without moments and opening.

        The batch must lie on the host. Its past, where there is one, is handed on as it is: it is that of the sessions from 0 on.
        """
        begin_R, end_R = self.first_session_B[row_R] + first_R, self.first_session_B[row_R] + last_R
        session_S = stretches(begin_R, end_R)
        token_N = stretches(self.session_offsets[begin_R], self.session_offsets[end_R])
        length_S = self.session_offsets[session_S + 1] - self.session_offsets[session_S]
        num_tokens_R = self.session_offsets[end_R] - self.session_offsets[begin_R]
        return HistoryBatch(
            tokens_N=self.tokens_N[token_N],
            event_types_N=self.event_types_N[token_N],
            values_N=self.values_N[token_N],
            event_times_N=self.event_times_N[token_N],
            row_offsets=_offsets(num_tokens_R),
            session_offsets=_offsets(length_S),
            first_target_B=self.first_target_B[row_R],
            features_NF=self.features_NF[token_N],
            past=self.past and self.past.of(row_R),
        )

    def parts(self, num_parts: int) -> list[HistoryBatch]:
        """Cut between rows into at most `num_parts` batches of about equally many steps each; none is empty."""
        wanted = torch.arange(1, num_parts) * self.num_tokens // num_parts
        inner = torch.searchsorted(self.row_offsets, wanted).tolist()
        bounds = sorted({0, *inner, self.num_rows})
        return [part for first, last in itertools.pairwise(bounds) if (part := self.rows(first, last)).num_tokens]

    def log_gaps(self) -> Tensor:
        """log(1 + seconds since the event before) [N], float32, on the host; NaN for a user's first event.

        Where sessions of a user overlap an event may be earlier than the one before it in the row: that counts as no gap.
        """
        gaps_N = torch.full((self.num_tokens,), torch.nan)
        gaps_N[1:] = self.event_times_N.diff().clamp(min=0).float().log1p()
        filled_B = self.row_offsets.diff() > 0
        begins = self.row_offsets[:-1][filled_B]
        gaps_N[begins] = torch.nan
        if self.past is not None:
            seconds = self.event_times_N[begins] - self.past.previous_time_B[filled_B]
            known = self.past.is_known_B[filled_B]
            gaps_N[begins[known]] = seconds[known].clamp(min=0).float().log1p()
        return gaps_N

    def account(self, place_L: Tensor) -> Tensor:
        """What is known of the users' histories up to these global positions (on the host), them included: log(1 + .) of the
        sessions, of the seconds from the user's first event to the latest one, and of the sum of the values that are
        there; [L, 3], float32, on the steps' device.
        """
        device = self.tokens_N.device
        row_L = torch.searchsorted(self.row_offsets, place_L, right=True) - 1
        first_L = self.row_offsets[row_L]
        session_L, first_session_L = (
            torch.searchsorted(self.session_offsets[:-1], position_L, right=True) for position_L in (place_L, first_L)
        )
        # Each row is lifted above the one before, so that one running maximum serves all of them.
        row_N = torch.repeat_interleave(torch.arange(self.num_rows), self.row_offsets.diff())
        lift_N = (
            row_N * (int(self.event_times_N.max()) - int(self.event_times_N.min()) + 1) if self.num_tokens else row_N
        )
        latest_N = (self.event_times_N + lift_N).cummax(0).values - lift_N
        opening = self._opening().of(row_L)
        num_sessions_L = session_L - first_session_L + 1 + opening.num_sessions_B
        latest_L = latest_N[place_L].maximum(opening.latest_time_B)
        totals_N = torch.nn.functional.pad(self.values_N.double().nan_to_num(0.0, 0.0, 0.0).cumsum(0), (1, 0))
        spent_L = totals_N[(place_L + 1).to(device)] - totals_N[first_L.to(device)] + opening.spent_B.to(device)
        known_L2 = torch.stack([num_sessions_L, latest_L - opening.first_time_B], dim=1).to(device)
        return torch.cat([known_L2.double(), spent_L[:, None]], dim=1).clamp(min=0).log1p().float()

    def _opening(self) -> Opening:
        """What the rows' accounts begin with."""
        if self.opening is not None and self.past is None:
            return self.opening
        filled_B = self.row_offsets.diff() > 0
        began_B = torch.zeros(self.num_rows, dtype=torch.int64)
        began_B[filled_B] = self.event_times_N[self.row_offsets[:-1][filled_B]]
        return Opening.of_newcomers(began_B) if self.past is None else self.past.opening(began_B)

    def moment_numbers(self) -> Tensor:
        """What the outcome head takes of each moment beside the context [L, A]. Raises ValueError where there are no moments."""
        if self.moments is None:
            raise ValueError("nothing is asked of these histories: they have no moments")
        return account_numbers(self.account(self.moments.place_L), self.moments.elapsed_L)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> HistoryBatch:
        """The same batch with its step tensors on `device`."""
        return dataclasses.replace(
            self,
            tokens_N=self.tokens_N.to(device, non_blocking=non_blocking),
            event_types_N=self.event_types_N.to(device, non_blocking=non_blocking),
            values_N=self.values_N.to(device, non_blocking=non_blocking),
            features_NF=self.features_NF.to(device, non_blocking=non_blocking),
            moments=self.moments and self.moments.to(device, non_blocking=non_blocking),
            past=self.past and self.past.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> HistoryBatch:
        """The same batch with its step tensors in page-locked memory, so that `.to(device, non_blocking=True)` overlaps."""
        return dataclasses.replace(
            self,
            tokens_N=self.tokens_N.pin_memory(),
            event_types_N=self.event_types_N.pin_memory(),
            values_N=self.values_N.pin_memory(),
            features_NF=self.features_NF.pin_memory(),
            moments=self.moments and self.moments.pin_memory(),
            past=self.past and self.past.pin_memory(),
        )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
