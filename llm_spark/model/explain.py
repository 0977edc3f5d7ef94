"""What each past event, and the long-term memory as a whole, added to the score of a recommended item.

Integrated gradients (Sundararajan et al. 2017, "Axiomatic attribution for deep networks") over the inputs of the
recurrent cell. An event's input x_j (embedding, type, value) is faded in from nothing at all, along with all others':

    weight_j = x_j . integral over a from 0 to 1 of  d score(a x_1, ..., a x_n) / d x_j
    baseline + weight_1 + ... + weight_n = score        (the axiom of completeness)

The baseline is the score after sessions at the same times of which nothing is known. Events of earlier sessions reach
the score through the long-term memory alone: their weights' sum is what the memory added. Where a row goes on from a past
that is no part of it (model/past.py), the memory which that left is faded in from a newcomer's, along with the events,
and what it added is the memory's as well.

A score is the item's logit less the mean logit of all items: what moves all items alike changes no prediction, and is
no reason.

What the model foretells of a user's outcomes is explained in the same way, the score being the outcome's logit, or log(1 + amount).

The integral is taken by Gauss and Legendre's rule, at one point unless told otherwise: the middle of the path. What it
misses (`remainder`) is spread over the events in proportion to the size of their weights, so that the sum is exact.
More points leave less to be spread and take as many times longer, but come no nearer to exact occlusion on held-out
users: `python -m tests.benchmarks.explain`.

Shape suffixes: B rows, K items of a row, N events, P packed steps, E embedding, D context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.model.outcomes import NUM_ACCOUNT_NUMBERS, account_numbers
from llm_spark.model.plan import SessionPlan
from llm_spark.tokens import FIRST_ITEM_TOKEN

NUM_POINTS = 1


@dataclass(frozen=True)
class Explanation:
    """baseline_BK + past_BK + the sum of weight_NK over the row's events is score_BK. All on the host."""

    weight_NK: Tensor
    """What each event added to the score of each item of its row."""
    past_BK: Tensor
    """What the memory of the sessions before the row's first one added; 0 without such."""
    memory_BK: Tensor
    """That, and the weights of the row's events before the current session: both act through the long-term memory."""
    baseline_BK: Tensor
    """The items' scores if nothing were known of any event."""
    score_BK: Tensor
    """The items' scores: logits less the mean logit of all items. Of outcomes, those that the head gives."""
    remainder_BK: Tensor
    """What the integral had missed, and was spread over the events and the past."""


def explain(
    model: NextEventModel,
    batch: HistoryBatch,
    contexts_BD: Tensor,
    tokens_BK: Tensor,
    starts_session_B: Tensor | None = None,
    num_points: int = NUM_POINTS,
) -> Explanation:
    """Explain the scores of the items `tokens_BK` where `contexts_BD` is `model.next_step(batch, starts_session_B)`.

    The model must be in evaluation mode. A row gets the same whatever rows stand beside it, up to rounding. The cost is
    that of num_points * (1 + 2 K) + 1 forward passes, about.
    """
    with torch.no_grad():
        weight_VD, bias_V = model.output_layer()
        distinctive_BKD = weight_VD[tokens_BK] - weight_VD[FIRST_ITEM_TOKEN:].mean(dim=0)
        bias_BK = bias_V[tokens_BK] - bias_V[FIRST_ITEM_TOKEN:].mean()

    def scores(contexts_BD: Tensor) -> Tensor:
        return (distinctive_BKD @ contexts_BD[:, :, None]).squeeze(2) + bias_BK

    return _explained(model, batch, contexts_BD, scores, tokens_BK.shape[1], starts_session_B, num_points)


def explain_outcomes(
    model: NextEventModel, batch: HistoryBatch, elapsed_B: Tensor, num_points: int = NUM_POINTS
) -> Explanation:
    """Explain what `model.outcomes(batch, elapsed_B)` foretells: K outcomes, whose scores are logits of probabilities and log(1 + amount).

    The head's own numbers (visits, time, spending, time elapsed) are held as they are, and are part of the baseline: a weight is what the
    event added through what the network makes of it, not through having been one more visit.
    """
    head = model.outcome_head
    if head is None:
        raise ValueError("the model has no outcome head: it was trained without model.outcomes")
    with torch.no_grad():
        contexts_BD = model.next_step(batch)
        known_B = batch.row_offsets.diff() > 0
        numbers_BA = torch.zeros(batch.num_rows, NUM_ACCOUNT_NUMBERS)
        numbers_BA[known_B] = account_numbers(
            batch.account(batch.row_offsets[1:][known_B] - 1), elapsed_B[known_B]
        ).cpu()
        numbers_BA = numbers_BA.to(contexts_BD.device)
    return _explained(
        model,
        batch,
        contexts_BD,
        lambda contexts_BD: head(contexts_BD, numbers_BA),
        len(model.config.outcomes),
        None,
        num_points,
    )


def _explained(
    model: NextEventModel,
    batch: HistoryBatch,
    contexts_BD: Tensor,
    scores: Callable[[Tensor], Tensor],
    num_scores: int,
    starts_session_B: Tensor | None,
    num_points: int,
) -> Explanation:
    """What each event added to the K `scores` [B, K] of the contexts, each row's of its own context alone."""
    assert not model.training
    plan = SessionPlan.for_next_step(batch, starts_session_B).to(batch.tokens_N.device)
    with torch.no_grad():
        inputs_PE = model.step_inputs(batch, plan)
        is_event_P = plan.token_P >= 0
        events_PE = inputs_PE * is_event_P[:, None]
        nothing_PE = inputs_PE - events_PE
        known_SM = inputs_PE[:0] if plan.start_SM is None else plan.start_SM
        newcomer_SM = inputs_PE[:0] if plan.start_SM is None else model.newcomers(len(known_SM)).memory_BM
        past_SM = known_SM - newcomer_SM

    def scores_of(faded_PE: Tensor, start_SM: Tensor) -> Tensor:
        started = plan if plan.start_SM is None else dataclasses.replace(plan, start_SM=start_SM)
        return scores(model.contexts_of_inputs(faded_PE, started))

    weight_PK, past_SK = (inputs_PE.new_zeros(len(of), num_scores) for of in (inputs_PE, past_SM))
    points, shares = np.polynomial.legendre.leggauss(num_points)
    # cuDNN's recurrent layers have no backward pass in evaluation mode.
    with torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        for point, share in zip((points + 1) / 2, shares / 2, strict=True):
            faded_PE = (nothing_PE + float(point) * events_PE).requires_grad_()
            start_SM = (newcomer_SM + float(point) * past_SM).requires_grad_()
            sums_K = scores_of(faded_PE, start_SM).sum(dim=0)
            for k in range(num_scores):
                # A row's score depends on its own steps alone: one pass serves the k-th items of all rows.
                gradient_PE, gradient_SM = torch.autograd.grad(
                    sums_K[k], (faded_PE, start_SM), retain_graph=k + 1 < num_scores, materialize_grads=True
                )
                weight_PK[:, k] += float(share) * (gradient_PE * events_PE).sum(dim=1)
                past_SK[:, k] += float(share) * (gradient_SM * past_SM).sum(dim=1)
    with torch.no_grad():
        baseline_BK, score_BK = scores_of(nothing_PE, newcomer_SM).cpu(), scores(contexts_BD).cpu()
    weight_NK = torch.zeros(batch.num_tokens, num_scores)
    weight_NK[plan.token_P[is_event_P].cpu()] = weight_PK[is_event_P].cpu()
    past_BK = torch.zeros(batch.num_rows, num_scores)
    if plan.start_SM is not None:
        past_BK.index_add_(0, plan.start_row_S.cpu(), past_SK.cpu())
    row_N = torch.repeat_interleave(torch.arange(batch.num_rows), batch.row_offsets.diff())

    def sum_of_rows(values_NK: Tensor) -> Tensor:
        return torch.zeros(batch.num_rows, num_scores).index_add_(0, row_N, values_NK)

    remainder_BK = score_BK - baseline_BK - sum_of_rows(weight_NK) - past_BK
    size_BK = sum_of_rows(weight_NK.abs()) + past_BK.abs()
    alike_N1 = batch.row_offsets.diff()[row_N, None].reciprocal()
    share_NK = torch.where(size_BK[row_N] > 0, weight_NK.abs() / size_BK[row_N], alike_N1)
    weight_NK += remainder_BK[row_N] * share_NK
    past_BK += remainder_BK * torch.where(size_BK > 0, past_BK.abs() / size_BK, 0.0)
    is_earlier_N = _is_in_earlier_session(batch, row_N, starts_session_B)
    return Explanation(
        weight_NK=weight_NK,
        past_BK=past_BK,
        memory_BK=past_BK + sum_of_rows(weight_NK * is_earlier_N[:, None]),
        baseline_BK=baseline_BK,
        score_BK=score_BK,
        remainder_BK=remainder_BK,
    )


def _is_in_earlier_session(batch: HistoryBatch, row_N: Tensor, starts_session_B: Tensor | None) -> Tensor:
    """Which events [N] lie in a session that has ended: all but those of the row's last one, unless that has ended too."""
    last_begin_B = batch.session_offsets[torch.searchsorted(batch.session_offsets, batch.row_offsets[1:]) - 1]
    is_earlier_N = torch.arange(batch.num_tokens) < last_begin_B[row_N]
    return is_earlier_N if starts_session_B is None else is_earlier_N | starts_session_B.cpu()[row_N]
