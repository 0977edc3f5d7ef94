"""What may be offered to whom, and each user's best items under it: exact, a bounded number of logits at a time.

A list is what is left of all items, the likeliest first and equal ones by token, when one goes down them and leaves out what is not allowed,
what the user has had, what is less probable than the minimum, and what would be one too many of its category; the first k of it. To take
the best that still fits is optimal here: sets with at most m of each category form a matroid.

Shape suffixes: B rows, C rows of one chunk, W of them whose lists are not settled yet, D context, V tokens, I items (V - 2), A allowed
items, N candidates (or events), K list length, P pairs of row and token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llm_spark.model.history import HistoryBatch
from llm_spark.model.losses import chunk_rows, is_item
from llm_spark.model.ranking import best_columns
from llm_spark.tokens import FIRST_ITEM_TOKEN


@dataclass(frozen=True)
class RecentEvents:
    """The newest events of each row's user, as many as a history keeps: what he has had, and what the model knows of it."""

    row_N: Tensor
    event_types_N: Tensor
    tokens_N: Tensor

    @classmethod
    def of_histories(cls, batch: HistoryBatch) -> RecentEvents:
        """Those of histories that hold all of them."""
        row_N = torch.repeat_interleave(torch.arange(batch.num_rows), batch.row_offsets.diff())
        return cls(row_N, batch.event_types_N.cpu(), batch.tokens_N.cpu())

    def is_unknown(self, num_rows: int, num_tokens: int) -> Tensor:
        """Which rows [B] have no event with an item that a model of so many tokens knows."""
        is_known_N = is_item(self.tokens_N) & (self.tokens_N < num_tokens)
        return torch.bincount(self.row_N[is_known_N], minlength=num_rows) == 0


@dataclass(frozen=True)
class Offers:
    """The rules of all users' lists. Arrays have one place a token of the model, padding and unknown included."""

    k: int
    """Items of a list."""
    had_by: frozenset[int] | None = frozenset()
    """The event types (tokens) by which a user has had an item, which is then not offered again; None for every type."""
    allowed_V: NDArray[np.bool_] | None = None
    """Which items may be offered at all; None for every item."""
    category_V: NDArray[np.int64] | None = None
    """Each item's category: a code from 1; 0 for none, which is not bounded."""
    max_per_category: int = 0
    """Items of one category in a list; 0 for no bound."""
    min_probability: float = 0.0
    """What is less probable is not offered."""
    with_fallback: bool = False
    """Whether users of whose events the model knows none are marked for the fallback instead of answered."""

    def had(self, recent: RecentEvents) -> tuple[Tensor, Tensor]:
        """The pairs of row and token [P] that are not offered again."""
        if self.had_by is None:
            return recent.row_N, recent.tokens_N
        had_N = torch.isin(recent.event_types_N, torch.tensor(sorted(self.had_by), dtype=torch.int64))
        return recent.row_N[had_N], recent.tokens_N[had_N]

    def digest(self) -> str:
        """A hash of which items are allowed and of their categories: the same again, the same lists."""
        content = hashlib.sha256()
        for array in (self.allowed_V, self.category_V):
            content.update(b"-" if array is None else array.tobytes())
        return content.hexdigest()[:16]

    def columns(self, num_items: int) -> Tensor | None:
        """The places [A], among the items, of those that are allowed; None for all."""
        if self.allowed_V is None:
            return None
        return torch.from_numpy(np.flatnonzero(self.allowed_V[FIRST_ITEM_TOKEN : FIRST_ITEM_TOKEN + num_items]))

    def categories(self, num_items: int, columns_A: Tensor | None) -> Tensor | None:
        """The codes [A] of those items' categories; None where no category is bounded."""
        if not self.max_per_category or self.category_V is None:
            return None
        category_I = torch.from_numpy(self.category_V[FIRST_ITEM_TOKEN : FIRST_ITEM_TOKEN + num_items])
        return category_I if columns_A is None else category_I[columns_A]


@torch.no_grad()
def top_offers(
    contexts_BD: Tensor,
    offers: Offers,
    had: tuple[Tensor, Tensor],
    weight_VD: Tensor,
    bias_V: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best items that may be offered to each row, best first: tokens, logits and probabilities softmax(logits / temperature), [B, K].

    `had` is (rows, tokens), the pairs that are not offered again. Probabilities are those among all items, whatever is offered. K is the
    smaller of k and the number of items; places that the rules leave unfilled have logit -inf.
    """
    weight_ID, bias_I = weight_VD[FIRST_ITEM_TOKEN:], bias_V[FIRST_ITEM_TOKEN:]
    num_rows, num_items = len(contexts_BD), len(bias_I)
    shape = num_rows, min(offers.k, num_items)
    tokens_BK = torch.full(shape, FIRST_ITEM_TOKEN)
    scores_BK, probabilities_BK = torch.full(shape, -torch.inf), torch.zeros(shape)
    columns_A = offers.columns(num_items)
    category_A = offers.categories(num_items, columns_A)
    row_P, token_P = had
    is_mine_P = is_item(token_P) & (token_P < len(bias_V))
    row_P, token_P = row_P[is_mine_P], token_P[is_mine_P]
    for rows_C in torch.arange(num_rows).split(chunk_rows(num_items)):
        first, last = int(rows_C[0]), int(rows_C[-1])
        logits_CI = F.linear(contexts_BD[rows_C], weight_ID, bias_I).float()
        log_sum_C1 = (logits_CI / temperature).logsumexp(dim=1, keepdim=True)
        is_here_P = (row_P >= first) & (row_P <= last)
        logits_CI[row_P[is_here_P] - first, token_P[is_here_P] - FIRST_ITEM_TOKEN] = -torch.inf
        offered_CA = logits_CI if columns_A is None else logits_CI[:, columns_A]
        places_CK, found_CK = _best_offers(offered_CA, log_sum_C1, shape[1], offers, category_A, temperature)
        tokens_BK[rows_C] = FIRST_ITEM_TOKEN + (places_CK if columns_A is None else _taken(columns_A, places_CK))
        scores_BK[rows_C] = found_CK
        probabilities_BK[rows_C] = (found_CK / temperature - log_sum_C1).exp()
    return tokens_BK, scores_BK, probabilities_BK


def popular_offers(offers: Offers, num_events_V: NDArray[np.int64]) -> list[int]:
    """The tokens, at most k, of the allowed items with the most events, equal ones by token, within the bounds of their categories.

    Items without an event are not among them. A probability for one user has no part in it, so that there is no minimum.
    """
    num_events_I = torch.from_numpy(num_events_V[FIRST_ITEM_TOKEN:])
    num_items = len(num_events_I)
    columns_A = offers.columns(num_items)
    events_1A = (num_events_I if columns_A is None else num_events_I[columns_A]).double()[None]
    events_1A = events_1A.masked_fill(events_1A == 0, -torch.inf)
    without_minimum = Offers(offers.k, max_per_category=offers.max_per_category)
    places_1K, found_1K = _best_offers(
        events_1A, torch.zeros(1, 1), min(offers.k, num_items), without_minimum, offers.categories(num_items, columns_A)
    )
    tokens_1K = FIRST_ITEM_TOKEN + (places_1K if columns_A is None else _taken(columns_A, places_1K))
    return tokens_1K[found_1K.isfinite()].tolist()


def _best_offers(
    offered_CA: Tensor,
    log_sum_C1: Tensor,
    num_listed: int,
    offers: Offers,
    category_A: Tensor | None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The places among A and the logits of each row's list, [C, K] each; -inf where it ends.

    Where categories are bounded the list may reach far down: twice as many candidates are looked at until every list is full or exhausted.
    """
    num_rows, num_offered = offered_CA.shape
    places_CK = torch.zeros(num_rows, num_listed, dtype=torch.int64)
    found_CK = offered_CA.new_full((num_rows, num_listed), -torch.inf)
    unsettled = torch.arange(num_rows) if num_offered else torch.arange(0)
    num_candidates = num_listed if category_A is None else 2 * num_listed
    while len(unsettled):
        scores_WA = offered_CA if len(unsettled) == num_rows else offered_CA[unsettled]
        candidates_WN = best_columns(scores_WA, num_candidates)
        scores_WN = scores_WA.gather(1, candidates_WN)
        kept_WN = scores_WN.isfinite()
        if offers.min_probability:
            kept_WN &= (scores_WN / temperature - log_sum_C1[unsettled]).exp() >= offers.min_probability
        # Scores fall along a row: behind one that is not good enough there is none.
        is_exhausted_W = (
            ~kept_WN[:, -1] if num_candidates < num_offered else torch.ones(len(unsettled), dtype=torch.bool)
        )
        if category_A is not None:
            kept_WN &= _within_bound(category_A[candidates_WN], offers.max_per_category)
        kept_first_WN = (~kept_WN).to(torch.int8).argsort(dim=1, stable=True)[:, :num_listed]
        num_found = kept_first_WN.shape[1]
        listed_WN = kept_WN.gather(1, kept_first_WN)
        places_CK[unsettled, :num_found] = candidates_WN.gather(1, kept_first_WN)
        found_CK[unsettled, :num_found] = scores_WN.gather(1, kept_first_WN).masked_fill(~listed_WN, -torch.inf)
        is_settled_W = is_exhausted_W | (kept_WN.sum(dim=1) >= num_listed)
        unsettled = unsettled[~is_settled_W]
        num_candidates *= 2
    return places_CK, found_CK


def _within_bound(category_WN: Tensor, bound: int) -> Tensor:
    """Which candidates, best first, are among the first `bound` of their category; all of category 0 are."""
    by_category_WN = category_WN.argsort(dim=1, stable=True)
    sorted_WN = category_WN.gather(1, by_category_WN)
    place_WN = torch.arange(category_WN.shape[1]).expand_as(category_WN)
    begins_WN = F.pad(sorted_WN[:, 1:] != sorted_WN[:, :-1], (1, 0), value=True)
    first_WN = torch.where(begins_WN, place_WN, 0).cummax(dim=1).values
    within_WN = torch.empty_like(category_WN).scatter_(1, by_category_WN, place_WN - first_WN)
    return (category_WN == 0) | (within_WN < bound)


def _taken(columns_A: Tensor, places_CK: Tensor) -> Tensor:
    return columns_A[places_CK] if len(columns_A) else torch.zeros_like(places_CK)
