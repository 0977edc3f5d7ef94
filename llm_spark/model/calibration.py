"""What is fitted on validation once a model is trained: numbers that make its probabilities and amounts hold on average.

Temperature scaling (Guo et al. 2017): one number that makes the softmax as sure as it is right.

Probabilities are softmax(z / T). T is what makes the held-out targets likeliest; in b = 1 / T the loss is convex:

    f(b) = sum_P logsumexp(b z) - b z_target,    f'(b) = sum_P E[z] - z_target,    f''(b) = sum_P Var[z]

with the mean and the variance taken under softmax(b z), so that a few Newton steps find it. The order of items and their ranks stay.

A ratio of means (Snowdon 1991, "A ratio estimator for bias correction in logarithmic regressions"): who learns log(1 + amount) by squared error
foretells its mean, and exp of that is far below the mean of amounts that vary much. What is foretold is multiplied by

    factor = sum of amounts / sum of what was foretold for them

Shape suffixes: P steps, D context, V vocabulary rows, I items (V - 2), C steps of one chunk, O outcomes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_spark.model.losses import chunk_rows, is_item
from llm_spark.tokens import FIRST_ITEM_TOKEN

_SMALLEST, _LARGEST = 0.05, 20.0
"""Bounds of 1 / T: beyond, the model knows nothing, or every target is its first item and no T is large enough."""
_NUM_STEPS = 25
_LONGEST_STEP = 2.0
_ENOUGH = 1e-4


@torch.no_grad()
def fit_temperature(
    contexts_PD: Tensor,
    targets_P: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda totals: totals,
    beat: Callable[[], None] = lambda: None,
) -> float:
    """The temperature for these held-out steps, of all ranks together; 1 where no target is an item of the vocabulary.

    Every rank calls it, with or without steps of its own, and gets the same. `beat` is called after every chunk.
    """
    kept_P = is_item(targets_P)
    contexts_PD, targets_P = contexts_PD[kept_P].float(), targets_P[kept_P]
    inverse = 1.0
    for _ in range(_NUM_STEPS):
        slope, curvature, num_targets = sum_over_ranks(
            _slopes(contexts_PD, targets_P, weight_VD, bias_V, inverse, beat)
        ).tolist()
        if not num_targets or curvature <= 0:
            return 1.0 if not num_targets else 1.0 / inverse
        # A step in the logarithm, by a factor of two at most: far from the minimum the curvature says little.
        step = slope / curvature / inverse
        factor = min(_LONGEST_STEP, max(1 / _LONGEST_STEP, 1 - step))
        moved = min(_LARGEST, max(_SMALLEST, inverse * factor))
        is_there = abs(moved - inverse) < _ENOUGH * inverse
        inverse = moved
        if is_there:
            break
    return 1.0 / inverse


def amount_factors(amount_sum_O: Tensor, foretold_sum_O: Tensor) -> Tensor:
    """The factors from both sums over the held-out moments, float32; 1 where nothing came about or was foretold."""
    factor_O = (amount_sum_O / foretold_sum_O).float()
    is_known_O = (amount_sum_O > 0) & (foretold_sum_O > 0) & factor_O.isfinite() & (factor_O > 0)
    return torch.where(is_known_O, factor_O, torch.ones_like(factor_O))


def _slopes(
    contexts_PD: Tensor, targets_P: Tensor, weight_VD: Tensor, bias_V: Tensor, inverse: float, beat: Callable[[], None]
) -> Tensor:
    """First and second derivative of the summed loss at this 1 / T, and the number of targets; float64 [3]."""
    weight_ID, bias_I = weight_VD[FIRST_ITEM_TOKEN:].float(), bias_V[FIRST_ITEM_TOKEN:].float()
    totals = torch.zeros(3, dtype=torch.float64, device=contexts_PD.device)
    for rows_C in torch.arange(len(targets_P), device=targets_P.device).split(chunk_rows(len(bias_I))):
        logits_CI = F.linear(contexts_PD[rows_C], weight_ID, bias_I)
        target_C = logits_CI.gather(1, targets_P[rows_C, None] - FIRST_ITEM_TOKEN).squeeze(1)
        share_CI = (logits_CI * inverse).softmax(dim=1)
        mean_C = (share_CI * logits_CI).sum(dim=1)
        variance_C = (share_CI * (logits_CI - mean_C[:, None]).square()).sum(dim=1)
        totals[0] += (mean_C - target_C).double().sum()
        totals[1] += variance_C.double().sum()
        beat()
    totals[2] = len(targets_P)
    return totals
