"""The order in which the model walks through a batch: all rows' first sessions, then all second ones, and so on.

Planned once a batch, on the host, with numpy, so that the model itself runs a few large kernels and never waits for
the device. A session of L tokens has L+1 steps: step 0 takes the begin-of-session input, step t takes token t-1.
The state after step t predicts token t.

Shape suffixes: B rows, N tokens, S sessions (in walking order: "slots"), P steps of all sessions in packed order, W
wanted steps, G groups (the g-th sessions of all rows that have one), K sessions of one attention bucket, T steps of
one session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_spark.model.history import HistoryBatch

BEGIN_OF_SESSION = -1


@dataclass(frozen=True)
class Group:
    """The g-th session of every row that has one, longest first, packed as torch's recurrent layers take it."""

    first_step: int
    last_step: int
    """This group's steps are [first_step, last_step) of the packed order."""
    batch_sizes: Tensor
    """int64 [T], on the host: how many sessions have a step t."""
    previous_S: Tensor
    """int64: place, within the group before, of the session that each of these follows. Empty in the first group."""


@dataclass(frozen=True)
class Bucket:
    """Sessions of like length, padded to the longest for the attention."""

    steps_KT: Tensor
    """int64: packed position of each step; past a session's end its last step is repeated (causality hides those)."""
    slots_K: Tensor
    """int64: place of each session in the walking order."""


@dataclass(frozen=True)
class SessionPlan:
    """Index tensors for one forward pass over one `HistoryBatch`."""

    groups: list[Group]
    buckets: list[Bucket]
    token_P: Tensor
    """int64: global token position that feeds each step, or BEGIN_OF_SESSION."""
    gap_S2: Tensor
    """float32: log(1 + seconds since the user's previous session) / 10, and 1 where there was one, else 0."""
    start_SM: Tensor | None
    """float32: the memory that each session of the first group begins with; None where all are newcomers' first ones."""
    start_row_S: Tensor
    """int64: the row of each session of the first group."""
    wanted_step_W: Tensor
    """int64: packed position of each wanted step."""
    wanted_cell_W: Tensor
    """int64: the same steps' places in the buckets, flattened and laid end to end."""
    wanted_slot_W: Tensor
    """int64: the session of each wanted step."""
    target_W: Tensor
    """int64: global position of the token that each wanted step predicts; steps beyond these predict no token of the batch."""

    @classmethod
    def for_targets(cls, batch: HistoryBatch, after_tokens: Tensor | None = None) -> SessionPlan:
        """Wanted are the steps that predict each row's tokens from its `first_target` on, in the order of the tokens; and after
        these the steps that follow on the tokens at the global positions `after_tokens`, each in its own session.
        """
        layout = _Layout(batch, np.zeros(batch.num_rows, dtype=bool))
        num_tokens_B = np.diff(layout.row_offsets)
        position_N = np.arange(batch.num_tokens) - np.repeat(layout.row_offsets[:-1], num_tokens_B)
        first_N = np.repeat(batch.first_target_B.numpy(), num_tokens_B)
        target_W = np.flatnonzero(position_N >= first_N)
        # The step after token i stands where that before token i + 1 would.
        after = np.zeros(0, dtype=np.int64) if after_tokens is None else after_tokens.numpy()
        session_N = np.repeat(np.arange(batch.num_sessions), np.diff(batch.session_offsets.numpy()))
        slot_W = layout.slot_of_session[session_N[np.concatenate([target_W, after])]]
        return layout.plan(slot_W, np.concatenate([target_W, after + 1]) - layout.begin_S[slot_W], target_W)

    @classmethod
    def for_next_step(cls, batch: HistoryBatch, starts_session_B: Tensor | None = None) -> SessionPlan:
        """Wanted is one step a row: after its last token or, where `starts_session_B` is true, the first step of a session yet
        to come.

        A row without tokens always starts a session.
        """
        last_session_B = np.searchsorted(batch.session_offsets.numpy()[:-1], batch.row_offsets.numpy()[1:]) - 1
        empty_B = np.diff(batch.row_offsets.numpy()) == 0
        starts_B = empty_B if starts_session_B is None else starts_session_B.cpu().numpy() | empty_B
        layout = _Layout(batch, starts_B)
        slot_B = np.where(
            starts_B, 0, layout.slot_of_session[np.where(empty_B, 0, last_session_B)] if batch.num_sessions else 0
        )
        slot_B[starts_B] = layout.slot_of_session[batch.num_sessions :]
        return layout.plan(slot_B, layout.length_S[slot_B], np.zeros(0, dtype=np.int64))

    def to(self, device: torch.device) -> SessionPlan:
        """The plan with its index tensors on `device`; the sizes that steer kernels stay on the host."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return SessionPlan(
            groups=[Group(g.first_step, g.last_step, g.batch_sizes, move(g.previous_S)) for g in self.groups],
            buckets=[Bucket(move(b.steps_KT), move(b.slots_K)) for b in self.buckets],
            token_P=move(self.token_P),
            gap_S2=move(self.gap_S2),
            start_SM=None if self.start_SM is None else move(self.start_SM),
            start_row_S=move(self.start_row_S),
            wanted_step_W=move(self.wanted_step_W),
            wanted_cell_W=move(self.wanted_cell_W),
            wanted_slot_W=move(self.wanted_slot_W),
            target_W=move(self.target_W),
        )


class _Layout:
    """Where every session and every step of a batch stands in the walking order."""

    def __init__(self, batch: HistoryBatch, appended_B: np.ndarray) -> None:
        """`appended_B` marks the rows that get an empty session after their last one."""
        self.row_offsets = batch.row_offsets.numpy()
        offsets = batch.session_offsets.numpy()
        num_sessions = batch.num_sessions
        session_rows = np.searchsorted(offsets[:-1], self.row_offsets)  # [B+1]: first session of each row
        num_sessions_B = np.diff(session_rows)
        appended_rows = np.flatnonzero(appended_B)
        row = np.concatenate([np.repeat(np.arange(batch.num_rows), num_sessions_B), appended_rows])
        index = np.concatenate(
            [np.arange(num_sessions) - np.repeat(session_rows[:-1], num_sessions_B), num_sessions_B[appended_rows]]
        )
        length = np.concatenate([np.diff(offsets), np.zeros(len(appended_rows), dtype=np.int64)])
        begin = np.concatenate([offsets[:-1], self.row_offsets[1:][appended_rows]])
        previous = np.concatenate([np.arange(num_sessions) - 1, session_rows[1:][appended_rows] - 1])

        order = np.lexsort((row, -length, index))
        self.slot_of_session = np.empty(len(order), dtype=np.int64)
        self.slot_of_session[order] = np.arange(len(order))
        self.length_S, self.begin_S, self.group_S = length[order], begin[order], index[order]
        self.group_offsets = np.concatenate([[0], np.cumsum(np.bincount(self.group_S))]).astype(np.int64)
        follows_S = self.group_S > 0
        self.previous_slot_S = self.slot_of_session[np.where(follows_S, previous[order], 0)] if len(order) else previous

        self.step_offsets = np.concatenate([[0], np.cumsum(self.length_S + 1)])
        slot_of_step = np.repeat(np.arange(len(order)), self.length_S + 1)
        time_of_step = np.arange(self.step_offsets[-1]) - self.step_offsets[:-1][slot_of_step]
        self.num_times = int(self.length_S.max(initial=0)) + 1
        key = self.group_S[slot_of_step] * self.num_times + time_of_step
        packed = np.argsort(key, kind="stable")
        self.packed_of_step = np.empty(len(packed), dtype=np.int64)
        self.packed_of_step[packed] = np.arange(len(packed))
        self.num_at_time_GT = np.bincount(key, minlength=(len(self.group_offsets) - 1) * self.num_times).reshape(
            -1, self.num_times
        )
        token = self.begin_S[slot_of_step] + time_of_step - 1
        self.token_P = np.where(time_of_step == 0, BEGIN_OF_SESSION, token)[packed]

        self.row_S = row[order]
        self.past = batch.past
        times_N = batch.event_times_N.numpy()
        has_gap_S = follows_S & (self.length_S > 0)
        begin_S = self.begin_S[has_gap_S]
        seconds_S = np.zeros(len(order), dtype=np.int64)
        seconds_S[has_gap_S] = times_N[begin_S] - times_N[begin_S - 1]
        if batch.past is not None:
            goes_on_S = ~follows_S & (self.length_S > 0) & batch.past.is_known_B.numpy()[self.row_S]
            seconds_S[goes_on_S] = times_N[self.begin_S[goes_on_S]]
            seconds_S[goes_on_S] -= batch.past.previous_time_B.numpy()[self.row_S[goes_on_S]]
            has_gap_S |= goes_on_S
        self.gap_S2 = np.zeros((len(order), 2), dtype=np.float32)
        self.gap_S2[has_gap_S, 0] = np.log1p(np.maximum(seconds_S[has_gap_S], 0)) / 10
        self.gap_S2[has_gap_S, 1] = 1

    def plan(self, slot_W: np.ndarray, time_W: np.ndarray, target_W: np.ndarray) -> SessionPlan:
        buckets, cell_W = self._buckets(slot_W, time_W)
        start_row_S = torch.from_numpy(self.row_S[self.group_S == 0])
        return SessionPlan(
            groups=self._groups(),
            buckets=buckets,
            token_P=torch.from_numpy(self.token_P),
            gap_S2=torch.from_numpy(self.gap_S2),
            start_SM=None if self.past is None else self.past.of(start_row_S).memory_BM,
            start_row_S=start_row_S,
            wanted_step_W=torch.from_numpy(self.packed_of_step[self.step_offsets[:-1][slot_W] + time_W]),
            wanted_cell_W=torch.from_numpy(cell_W),
            wanted_slot_W=torch.from_numpy(slot_W),
            target_W=torch.from_numpy(target_W),
        )

    def _groups(self) -> list[Group]:
        groups = []
        first_step = 0
        for g, sizes_T in enumerate(self.num_at_time_GT):
            batch_sizes = sizes_T[sizes_T > 0]
            last_step = first_step + int(batch_sizes.sum())
            slots = slice(self.group_offsets[g], self.group_offsets[g + 1])
            previous_S = self.previous_slot_S[slots] - self.group_offsets[g - 1] if g else np.zeros(0, dtype=np.int64)
            groups.append(Group(first_step, last_step, torch.from_numpy(batch_sizes), torch.from_numpy(previous_S)))
            first_step = last_step
        return groups

    def _buckets(self, slot_W: np.ndarray, time_W: np.ndarray) -> tuple[list[Bucket], np.ndarray]:
        """Group the sessions that hold a wanted step by length (up to 4, 8, 16, ... steps), and say where each wanted step
        went.
        """
        used = np.unique(slot_W)
        bits_of_used = np.maximum(np.ceil(np.log2(self.length_S[used] + 1)), 2)
        buckets = []
        cell_of_slot = np.zeros(len(self.length_S), dtype=np.int64)
        num_cells = 0
        for bits in np.unique(bits_of_used):
            slots_K = used[bits_of_used == bits]
            last_K1 = self.length_S[slots_K][:, None]
            times_T = np.arange(int(last_K1.max()) + 1)
            steps_KT = self.packed_of_step[self.step_offsets[slots_K][:, None] + np.minimum(times_T, last_K1)]
            buckets.append(Bucket(torch.from_numpy(steps_KT), torch.from_numpy(slots_K)))
            cell_of_slot[slots_K] = num_cells + np.arange(len(slots_K)) * len(times_T)
            num_cells += steps_KT.size
        return buckets, cell_of_slot[slot_W] + time_W
