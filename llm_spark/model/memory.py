"""The long-term memory: one vector a user, carried from session to session by a GRU cell.

m_{s+1} = GRUCell([summary of session s, log time gap before it], m_s); it initialises the recurrent state of the
next session (the session-level GRU of Quadrana et al. 2017, "Personalizing session-based recommendations with
hierarchical recurrent neural networks").

Shape suffixes: S sessions, H hidden, M memory, Y layers of the recurrent cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_GAP_FEATURES = 2


class UserMemory(nn.Module):
    """Folds finished sessions into the user's vector and starts new ones from it."""

    def __init__(self, memory_size: int, hidden_size: int, num_layers: int, cell: str) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.num_states = 2 if cell == "lstm" else 1
        self.newcomer_M = nn.Parameter(torch.zeros(memory_size))
        self.fold_cell = nn.GRUCell(hidden_size + NUM_GAP_FEATURES, memory_size)
        self.start = nn.Linear(memory_size, self.num_states * num_layers * hidden_size)

    def newcomers(self, num_users: int) -> Tensor:
        """The memory [num_users, M] of users without a past session: learned."""
        return self.newcomer_M.expand(num_users, -1)

    def fold(self, summary_SH: Tensor, gap_S2: Tensor, memory_SM: Tensor) -> Tensor:
        """The users' vectors [S, M] after their sessions ended with these summaries."""
        folded_SM: Tensor = self.fold_cell(torch.cat([summary_SH, gap_S2.to(summary_SH.dtype)], dim=1), memory_SM)
        return folded_SM

    def initial_states(self, memory_SM: Tensor) -> tuple[Tensor, ...]:
        """The recurrent states [Y, S, H] (for an LSTM also the cell states) with which the next sessions begin."""
        start = torch.tanh(self.start(memory_SM)).view(len(memory_SM), self.num_states, self.num_layers, -1)
        return tuple(start[:, i].transpose(0, 1).contiguous() for i in range(self.num_states))
