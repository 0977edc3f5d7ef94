"""Causal self-attention over the hidden states of one session, with the user's memory as a key of its own.

a_tj = softmax_j(score(h_t, h_j)) over j <= t and the memory; context c_t = sum_j a_tj h_j. The score is scaled dot
product (Vaswani et al. 2017) or additive, v . tanh(W_q h_t + W_k h_j) (Bahdanau et al. 2015; as in NARM, Li et al.
2017). The same weights may sum the steps' inputs too, as STAMP does the items of a session (Liu et al. 2018):
e_t = sum_j a_tj x_j.

Shape suffixes: P packed steps, S sessions, K sessions of one bucket, T query steps, J key steps, H hidden, E
embedding, V values (H, or H + E with the inputs), M memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm_spark.model.plan import SessionPlan

MAX_PAIR_ELEMENTS = 2**24
"""Largest [K, T, J, H] block that the additive score holds at a time."""


class SessionAttention(nn.Module):
    """The context vector of every step, from the states up to and including it, and from the memory when there is one."""

    def __init__(self, hidden_size: int, memory_size: int, score: str) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1, bias=False) if score == "additive" else None
        self.memory_key = nn.Linear(memory_size, hidden_size) if memory_size else None
        self.memory_value = nn.Linear(memory_size, hidden_size) if memory_size else None

    def forward(
        self, states_PH: Tensor, memory_SM: Tensor, plan: SessionPlan, inputs_PE: Tensor | None = None
    ) -> Tensor:
        """Context vectors [cells, V] of the plan's buckets, flattened and laid end to end: pick with `plan.wanted_cell_W`.

        V is H, or, where the steps' inputs are given, H + E: their weighted sum stands behind that of the states.
        """
        values_PV = states_PH if inputs_PE is None else torch.cat([states_PH, inputs_PE.to(states_PH.dtype)], dim=1)
        contexts = []
        for bucket in plan.buckets:
            values_KJV = values_PV[bucket.steps_KT]
            states_KTH = values_KJV if inputs_PE is None else values_KJV[:, :, : states_PH.shape[1]]
            contexts.append(self._attend(states_KTH, values_KJV, memory_SM[bucket.slots_K]).flatten(0, 1))
        return torch.cat(contexts) if contexts else values_PV[:0]

    def _attend(self, states_KTH: Tensor, values_KJV: Tensor, memory_KM: Tensor) -> Tensor:
        queries_KTH, keys_KJH = self.query(states_KTH), self.key(states_KTH)
        num_steps = states_KTH.shape[1]
        future_TJ = torch.ones(num_steps, num_steps, dtype=torch.bool, device=states_KTH.device).triu(1)
        if self.memory_key is not None and self.memory_value is not None:
            # The memory stands before the first step, where no query's causal mask hides it.
            keys_KJH = torch.cat([self.memory_key(memory_KM)[:, None], keys_KJH], dim=1)
            memory_KH = self.memory_value(memory_KM)
            num_inputs = values_KJV.shape[2] - memory_KH.shape[1]  # of which the memory stands for none
            memory_KV = torch.nn.functional.pad(memory_KH, (0, num_inputs))
            values_KJV = torch.cat([memory_KV[:, None], values_KJV], dim=1)
            future_TJ = torch.nn.functional.pad(future_TJ, (1, 0), value=False)
        scores_KTJ = self._scores(queries_KTH, keys_KJH).float().masked_fill(future_TJ, -torch.inf)
        weights_KTJ = scores_KTJ.softmax(dim=-1).to(values_KJV.dtype)
        return weights_KTJ @ values_KJV

    def _scores(self, queries_KTH: Tensor, keys_KJH: Tensor) -> Tensor:
        if self.score is None:
            return queries_KTH @ keys_KJH.transpose(1, 2) / math.sqrt(queries_KTH.shape[-1])
        pairs_per_session = queries_KTH.shape[1] * keys_KJH.shape[1] * queries_KTH.shape[2]
        num_at_a_time = max(1, MAX_PAIR_ELEMENTS // pairs_per_session)
        if num_at_a_time >= len(queries_KTH):
            return self._additive(queries_KTH, keys_KJH)
        blocks = zip(queries_KTH.split(num_at_a_time), keys_KJH.split(num_at_a_time), strict=True)
        return torch.cat([checkpoint(self._additive, q, k, use_reentrant=False) for q, k in blocks])

    def _additive(self, queries_KTH: Tensor, keys_KJH: Tensor) -> Tensor:
        assert self.score is not None
        scores_KTJ: Tensor = self.score(torch.tanh(queries_KTH[:, :, None] + keys_KJH[:, None])).squeeze(-1)
        return scores_KTJ
