"""Losses over the vocabulary, summed over the steps. Divide by `num_targets` of the global batch to get the mean.

Both hold O(chunk x V) or O(P x N) numbers, never P x V. Padding (0) and unknown (1) are neither targets nor
candidates: a step whose target is one of them carries no loss.

Shape suffixes: P steps (one target each), D context, V vocabulary rows, I items (V - 2), N negatives, C steps of
one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from llm_spark.tokens import FIRST_ITEM_TOKEN

MAX_LOGITS = 2**22
"""Logits held at a time: 16 MiB of float32, which is about the last-level cache of a server's core."""
NEGATIVE_FREQUENCY_POWER = 0.5
"""Negatives are drawn by frequency to this power: between uniform and popularity (Hidasi and Karatzoglou 2018)."""


def chunk_rows(num_items: int) -> int:
    """Steps whose logits over `num_items` are held at a time."""
    return max(1, MAX_LOGITS // max(1, num_items))


def is_item(targets_P: Tensor) -> Tensor:
    """Which steps [P] carry loss: those whose target is an item."""
    return targets_P >= FIRST_ITEM_TOKEN


class _ChunkedCrossEntropy(Function):
    """Cross entropy of a linear head, summed. Gradients are made in the forward pass, chunk by chunk: no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, contexts_PD: Tensor, items_P: Tensor, weight_ID: Tensor, bias_I: Tensor, num_rows: int
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad[:4])
        loss = contexts_PD.new_zeros((), dtype=torch.float32)
        contexts_grad_PD = torch.empty_like(contexts_PD) if needs_gradient else None
        weight_grad_ID = torch.zeros_like(weight_ID) if needs_gradient else None
        bias_grad_I = torch.zeros_like(bias_I) if needs_gradient else None
        for first in range(0, len(items_P), num_rows):
            rows = slice(first, first + num_rows)
            contexts_CD, items_C = contexts_PD[rows], items_P[rows, None]
            logits_CI = F.linear(contexts_CD, weight_ID, bias_I).float()
            log_sum_C1 = logits_CI.logsumexp(dim=1, keepdim=True)
            loss += (log_sum_C1 - logits_CI.gather(1, items_C)).sum()
            if contexts_grad_PD is None or weight_grad_ID is None or bias_grad_I is None:
                continue
            # d loss / d logits = softmax - one-hot of the target
            delta_CI = logits_CI.sub_(log_sum_C1).exp_()
            delta_CI.scatter_add_(1, items_C, torch.full_like(items_C, -1, dtype=delta_CI.dtype))
            contexts_grad_PD[rows] = torch.mm(delta_CI, weight_ID)
            weight_grad_ID += torch.mm(delta_CI.t(), contexts_CD)
            bias_grad_I += delta_CI.sum(dim=0)
        if needs_gradient:
            ctx.save_for_backward(contexts_grad_PD, weight_grad_ID, bias_grad_I)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        contexts_grad_PD, weight_grad_ID, bias_grad_I = ctx.saved_tensors
        return contexts_grad_PD * scale, None, weight_grad_ID * scale, bias_grad_I * scale, None


def full_cross_entropy(
    contexts_PD: Tensor, targets_P: Tensor, weight_VD: Tensor, bias_V: Tensor, num_rows: int | None = None
) -> Tensor:
    """Sum over the steps of -log softmax(logits over all items)[target].

    `num_rows` steps are worked at a time; not given, as many as MAX_LOGITS allows.
    """
    kept_P = is_item(targets_P)
    weight_ID, bias_I = weight_VD[FIRST_ITEM_TOKEN:], bias_V[FIRST_ITEM_TOKEN:]
    items_P = targets_P[kept_P] - FIRST_ITEM_TOKEN
    loss: Tensor = _ChunkedCrossEntropy.apply(
        contexts_PD[kept_P], items_P, weight_ID, bias_I, num_rows or chunk_rows(len(bias_I))
    )
    return loss


class NegativeSampler:
    """Draws items with replacement, with probability proportional to (times the item was a target + 1) ** power."""

    def __init__(self, counts_V: Tensor, power: float = NEGATIVE_FREQUENCY_POWER) -> None:
        mass_I = (counts_V[FIRST_ITEM_TOKEN:].double() + 1) ** power
        self.log_probability_I = (mass_I / mass_I.sum()).log().float()
        self._cumulative_I = mass_I.cumsum(0) / mass_I.sum()

    def draw(self, num_negatives: int, generator: torch.Generator) -> Tensor:
        """Item indices [N], token - 2 each."""
        device = self._cumulative_I.device
        uniform_N = torch.rand(num_negatives, generator=generator, device=device, dtype=torch.float64)
        return torch.searchsorted(self._cumulative_I, uniform_N).clamp(max=len(self._cumulative_I) - 1)


def sampled_cross_entropy(
    contexts_PD: Tensor,
    targets_P: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    sampler: NegativeSampler,
    num_negatives: int,
    generator: torch.Generator,
) -> Tensor:
    """Sum over the steps of the softmax loss among the target and `num_negatives` items drawn for the whole batch.

    Each negative's logit is lowered by log(N q_j), its expected count, and a negative that is the step's own target
    is left out: then exp(target) + sum of exp(negatives) is an unbiased estimate of the full softmax's denominator,
    and the gradient tends to the full one as N grows (Bengio and Senecal 2008; the target itself is certain and
    needs no correction).
    """
    kept_P = is_item(targets_P)
    contexts_PD, items_P = contexts_PD[kept_P], targets_P[kept_P] - FIRST_ITEM_TOKEN
    drawn_N = sampler.draw(num_negatives, generator)
    correction_N = sampler.log_probability_I[drawn_N] + torch.log(torch.tensor(float(num_negatives)))
    negatives_PN = F.linear(
        contexts_PD, weight_VD[drawn_N + FIRST_ITEM_TOKEN], bias_V[drawn_N + FIRST_ITEM_TOKEN]
    ).float()
    negatives_PN = (negatives_PN - correction_N).masked_fill(drawn_N == items_P[:, None], -torch.inf)
    rows_P = items_P + FIRST_ITEM_TOKEN
    target_P1 = (contexts_PD * weight_VD[rows_P]).sum(dim=1, keepdim=True).float() + bias_V[rows_P, None]
    return (torch.cat([target_P1, negatives_PN], dim=1).logsumexp(dim=1, keepdim=True) - target_P1).sum()
