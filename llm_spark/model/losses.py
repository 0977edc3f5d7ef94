"""Losses over the vocabulary, summed over the steps. Divide by `num_targets` of the global batch to get the mean.

They hold O(chunk x V) or O(P x (N + J)) numbers, never P x V. Padding (0) and unknown (1) are neither targets nor
candidates: a step whose target is one of them carries no loss.

Shape suffixes: P steps (one target each), D context, V vocabulary rows, I items (V - 2), N negatives drawn, J
negatives taken from the batch's own targets, C steps of one chunk.
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
        device_type = contexts_PD.device.type
        autocasts = torch.is_autocast_enabled(device_type)
        compute_type = torch.get_autocast_dtype(device_type) if autocasts else weight_ID.dtype
        contexts_grad_PD = torch.empty_like(contexts_PD) if needs_gradient else None
        weight_grad_ID = torch.zeros_like(weight_ID) if needs_gradient else None
        bias_grad_I = torch.zeros_like(bias_I) if needs_gradient else None
        # Cast once, not once a chunk and product.
        contexts_PD, weight_ID = contexts_PD.to(compute_type), weight_ID.to(compute_type)
        for first in range(0, len(items_P), num_rows):
            rows = slice(first, first + num_rows)
            contexts_CD, items_C = contexts_PD[rows], items_P[rows, None]
            logits_CI = F.linear(contexts_CD, weight_ID, bias_I).float()
            target_C1, largest_C1 = logits_CI.gather(1, items_C), logits_CI.amax(dim=1, keepdim=True)
            share_CI = logits_CI.sub_(largest_C1).exp_()
            sum_C1 = share_CI.sum(dim=1, keepdim=True)
            loss += (sum_C1.log() + largest_C1 - target_C1).sum()
            if contexts_grad_PD is None or weight_grad_ID is None or bias_grad_I is None:
                continue
            # d loss / d logits = softmax - one-hot of the target
            delta_CI = share_CI.div_(sum_C1)
            delta_CI.scatter_add_(1, items_C, torch.full_like(items_C, -1, dtype=delta_CI.dtype))
            bias_grad_I += delta_CI.sum(dim=0)
            delta_CI = delta_CI.to(compute_type)
            contexts_grad_PD[rows] = torch.mm(delta_CI, weight_ID)
            weight_grad_ID += torch.mm(delta_CI.t(), contexts_CD)
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
    """Draws items with replacement, with probability proportional to (times the item was a target + 1) ** power.

    0 draws all items alike, 1 by popularity (Hidasi and Karatzoglou 2018, "Recurrent Neural Networks with Top-k Gains").
    """

    def __init__(self, counts_V: Tensor, power: float) -> None:
        mass_I = (counts_V[FIRST_ITEM_TOKEN:].double() + 1) ** power
        self.log_probability_I = (mass_I / mass_I.sum()).log().float()
        self.target_share_I = (counts_V[FIRST_ITEM_TOKEN:].double() / counts_V[FIRST_ITEM_TOKEN:].sum()).float()
        self._cumulative_I = mass_I.cumsum(0) / mass_I.sum()

    def draw(self, num_negatives: int, generator: torch.Generator) -> Tensor:
        """Item indices [N], token - 2 each."""
        device = self._cumulative_I.device
        uniform_N = torch.rand(num_negatives, generator=generator, device=device, dtype=torch.float64)
        return torch.searchsorted(self._cumulative_I, uniform_N).clamp(max=len(self._cumulative_I) - 1)

    def draw_shared(
        self, items_P: Tensor, num_negatives: int, num_batch_negatives: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """`num_negatives` drawn items and up to `num_batch_negatives` of the batch's own, and the expected count of each.

        The two laws count as one mixture: how often an item is expected among all of them, wherever it came from.
        """
        # Nothing but these is drawn where the batch gives none: an accumulated step's parts then have the same ones.
        drawn_N = self.draw(num_negatives, generator)
        if not num_batch_negatives:
            return drawn_N, num_negatives * self.log_probability_I[drawn_N].exp()
        shuffled_P = torch.randperm(len(items_P), generator=generator, device=items_P.device)
        others_J = items_P[shuffled_P[:num_batch_negatives]]
        negatives = torch.cat([drawn_N, others_J])
        drawn = num_negatives * self.log_probability_I[negatives].exp()
        return negatives, drawn + len(others_J) * self.target_share_I[negatives]


def sampled_cross_entropy(
    contexts_PD: Tensor,
    targets_P: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    sampler: NegativeSampler,
    num_negatives: int,
    generator: torch.Generator,
    num_batch_negatives: int = 0,
) -> Tensor:
    """Sum over the steps of the softmax loss among the target and the items that the whole batch shares as negatives:
    `num_negatives` drawn by the sampler, and the targets of `num_batch_negatives` of the batch's steps (at most all).

    Each negative's logit is lowered by the log of its expected count among all of them, N q_j + J p_j, where p is the
    targets' own law, and a negative that is the step's own target is left out: then exp(target) + sum of
    exp(negatives) is an unbiased estimate of the full softmax's denominator, and the gradient tends to the full one as
    N grows (Bengio and Senecal 2008; two laws weighted as one mixture, the balance heuristic of Veach and Guibas 1995;
    the target itself is certain and needs no correction).
    """
    kept_P = is_item(targets_P)
    contexts_PD, items_P = contexts_PD[kept_P], targets_P[kept_P] - FIRST_ITEM_TOKEN
    negatives, expected_counts = sampler.draw_shared(items_P, num_negatives, num_batch_negatives, generator)
    rows, rows_P = negatives + FIRST_ITEM_TOKEN, items_P + FIRST_ITEM_TOKEN
    logits = F.linear(contexts_PD, F.embedding(rows, weight_VD), bias_V[rows]).float()
    logits = (logits - expected_counts.log()).masked_fill(negatives == items_P[:, None], -torch.inf)
    target_P1 = (contexts_PD * F.embedding(rows_P, weight_VD)).sum(dim=1, keepdim=True).float() + bias_V[rows_P, None]
    return (torch.cat([target_P1, logits], dim=1).logsumexp(dim=1, keepdim=True) - target_P1).sum()
