"""Exact ranks and top lists over the whole vocabulary, a bounded number of logits at a time.

Shape suffixes: P steps, D context, V vocabulary rows, I items (V - 2), C steps of one chunk, B rows, K list length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_spark.model.losses import chunk_rows, is_item
from llm_spark.tokens import FIRST_ITEM_TOKEN


@torch.no_grad()
def rank_targets(contexts_PD: Tensor, targets_P: Tensor, weight_VD: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's rank [P] among all items (1 is best, ties count against it) and its log probability [P].

    Where the target is unknown the rank is 0 and the log probability NaN. Logits are float32 also under autocast: in
    bfloat16, which has eight bits of precision, most of the best items would tie.
    """
    weight_ID, bias_I = weight_VD[FIRST_ITEM_TOKEN:], bias_V[FIRST_ITEM_TOKEN:]
    ranks_P = torch.zeros_like(targets_P)
    log_probabilities_P = torch.full(targets_P.shape, torch.nan, device=targets_P.device)
    for rows_C in is_item(targets_P).nonzero().squeeze(1).split(chunk_rows(len(bias_I))):
        with torch.autocast(contexts_PD.device.type, enabled=False):
            logits_CI = F.linear(contexts_PD[rows_C].float(), weight_ID, bias_I)
        target_C1 = logits_CI.gather(1, targets_P[rows_C, None] - FIRST_ITEM_TOKEN)
        ranks_P[rows_C] = (logits_CI >= target_C1).sum(dim=1)
        log_probabilities_P[rows_C] = target_C1.squeeze(1) - logits_CI.logsumexp(dim=1)
    return ranks_P, log_probabilities_P


@torch.no_grad()
def top_items(
    contexts_BD: Tensor,
    k: int,
    weight_VD: Tensor,
    bias_V: Tensor,
    excluded: tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best items of each row, best first: tokens, logits and probabilities softmax(logits / temperature), each [B, K].

    `excluded` is (rows, tokens), two int64 vectors: those pairs are left out of the lists; the probabilities stay
    those over all items. K is the smaller of k and the number of items; places that exclusion leaves unfilled have
    logit -inf.
    """
    weight_ID, bias_I = weight_VD[FIRST_ITEM_TOKEN:], bias_V[FIRST_ITEM_TOKEN:]
    num_listed = min(k, len(bias_I))
    tokens, scores, probabilities = [], [], []
    num_rows = chunk_rows(len(bias_I))
    for first in range(0, len(contexts_BD), num_rows):
        logits_CI = F.linear(contexts_BD[first : first + num_rows], weight_ID, bias_I).float()
        log_sum_C1 = (logits_CI / temperature).logsumexp(dim=1, keepdim=True)
        if excluded is not None:
            rows, seen = excluded
            here = is_item(seen) & (seen < len(bias_V)) & (rows >= first) & (rows < first + num_rows)
            logits_CI[rows[here] - first, seen[here] - FIRST_ITEM_TOKEN] = -torch.inf
        best_CK, items_CK = logits_CI.topk(num_listed, dim=1)
        tokens.append(items_CK + FIRST_ITEM_TOKEN)
        scores.append(best_CK)
        probabilities.append((best_CK / temperature - log_sum_C1).exp())
    if not tokens:
        empty = torch.zeros(0, num_listed)
        return empty.long(), empty, empty
    return torch.cat(tokens), torch.cat(scores), torch.cat(probabilities)
