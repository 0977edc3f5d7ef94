"""Lists under all filters, against going down a sorted list in plain Python."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_spark.scoring import recommend
from llm_spark.scoring.offers import Offers, RecentEvents, popular_offers, top_offers
from tests.model.histories import Row, batch_of, random_rows, row
from tests.scoring.conftest import NUM_EVENT_TYPES, NUM_TOKENS
from tests.training.sequences import table_of

NO_PAIRS = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


def walked(scores: dict[int, float], k: int, bound: int, category: dict[int, int]) -> list[int]:
    """Down the items, best first and equal ones by token, leaving out what is one too many of its category."""
    taken: list[int] = []
    held: Counter[int] = Counter()
    for token in sorted(scores, key=lambda token: (-scores[token], token)):
        code = category.get(token, 0)
        if len(taken) < k and (not bound or not code or held[code] < bound):
            taken.append(token)
            held[code] += 1
    return taken


@settings(max_examples=150, deadline=None)
@given(
    num_items=st.integers(1, 90),
    k=st.integers(1, 9),
    num_levels=st.sampled_from([1, 3, 40]),
    bound=st.integers(0, 3),
    num_categories=st.integers(0, 5),
    allowed_share=st.sampled_from([None, 0.0, 0.2, 0.9]),
    minimum=st.sampled_from([0.0, 0.01, 0.05, 0.3]),
    num_had=st.integers(0, 60),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_lists_are_those_of_a_walk_down_the_sorted_items(
    num_items: int,
    k: int,
    num_levels: int,
    bound: int,
    num_categories: int,
    allowed_share: float | None,
    minimum: float,
    num_had: int,
    temperature: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    num_rows, num_tokens = 6, num_items + 2
    # Whole numbers: equal scores are equal to the bit, however the rows are cut.
    weight = torch.from_numpy(rng.integers(-1, 2, (num_tokens, 3)).astype(np.float32))
    bias = torch.from_numpy(rng.integers(0, num_levels, num_tokens).astype(np.float32))
    contexts = torch.from_numpy(rng.integers(-2, 3, (num_rows, 3)).astype(np.float32))
    allowed = None if allowed_share is None else rng.random(num_tokens) < allowed_share
    category = rng.integers(0, num_categories + 1, num_tokens)
    had = rng.integers(0, num_rows, num_had), rng.integers(0, num_tokens + 3, num_had)
    offers = Offers(k, None, allowed, category, bound, minimum)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llm_spark.model.losses.MAX_LOGITS", 4 * num_items)
        tokens, scores, probabilities = top_offers(
            contexts, offers, (torch.from_numpy(had[0]), torch.from_numpy(had[1])), weight, bias, temperature
        )
    assert tokens.shape == (num_rows, min(k, num_items))
    logits = F.linear(contexts, weight, bias)
    chances = (logits[:, 2:] / temperature).softmax(dim=1)
    pairs = set(zip(*(side.tolist() for side in had), strict=True))
    for i in range(num_rows):
        offered = {
            token: logits[i, token].item()
            for token in range(2, num_tokens)
            if (allowed is None or allowed[token])
            and (i, token) not in pairs
            # Nothing here lies so near a minimum that rounding decides.
            and chances[i, token - 2] >= minimum * (1 - 1e-6)
        }
        expected = walked(offered, k, bound, dict(enumerate(category.tolist())))
        listed = scores[i].isfinite()
        assert tokens[i][listed].tolist() == expected
        assert listed.tolist() == [place < len(expected) for place in range(len(listed))]
        assert scores[i][listed].tolist() == [offered[token] for token in expected]
        torch.testing.assert_close(probabilities[i][listed], chances[i][[token - 2 for token in expected]])


def test_a_category_that_holds_the_best_hundreds_does_not_hide_what_comes_after() -> None:
    # 500 items of category 1 come first, then one of 2 and one without: the search must reach far beyond 2 k.
    num_tokens = 504
    bias = torch.linspace(100, 0, num_tokens)
    category = np.array([0, 0] + [1] * 500 + [2, 0])
    offers = Offers(4, category_V=category, max_per_category=1)
    tokens, scores, _ = top_offers(torch.zeros(1, 1), offers, NO_PAIRS, torch.zeros(num_tokens, 1), bias)
    assert tokens[0].tolist()[:3] == [2, 502, 503]
    assert scores[0].isfinite().tolist() == [True, True, True, False]


def test_logits_are_held_for_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_spark.model.losses.MAX_LOGITS", 30)
    held = []
    plain = F.linear

    def counted(*given: torch.Tensor) -> torch.Tensor:
        made = plain(*given)
        held.append(made.numel())
        return made

    monkeypatch.setattr("llm_spark.scoring.offers.F.linear", counted)
    tokens, _, _ = top_offers(torch.randn(17, 3), Offers(2), NO_PAIRS, torch.randn(12, 3), torch.randn(12))
    assert (len(tokens), sum(held), max(held)) == (17, 170, 30)


def test_popular_items_are_those_with_the_most_events_within_the_rules() -> None:
    #                        padding, unknown, then tokens 2 ...
    num_events = np.array([0, 99, 5, 7, 7, 0, 9, 6, 1])
    assert popular_offers(Offers(4), num_events) == [6, 3, 4, 7]
    assert popular_offers(Offers(20), num_events) == [6, 3, 4, 7, 2, 8], "an item without an event is not popular"
    denied = np.array([True] * 6 + [False] + [True] * 2)
    assert popular_offers(Offers(3, allowed_V=denied), num_events) == [3, 4, 7]
    category = np.array([0, 0, 2, 1, 1, 0, 1, 0, 0])
    assert popular_offers(Offers(4, category_V=category, max_per_category=1), num_events) == [6, 7, 2, 8]
    assert popular_offers(Offers(3, min_probability=0.99), num_events) == [6, 3, 4]
    assert popular_offers(Offers(3, allowed_V=np.zeros(9, dtype=bool)), num_events) == []


def test_what_a_user_has_had_is_told_by_the_events_types() -> None:
    first, second = row([[2, 3], [4]]), row([[5, 1]])
    first["event_types"], second["event_types"] = [2, 3, 3], [1, 3]
    recent = RecentEvents.of_histories(batch_of([first, second]))

    def had(types: frozenset[int] | None) -> list[tuple[int, int]]:
        return list(zip(*(side.tolist() for side in Offers(1, types).had(recent)), strict=True))

    assert had(frozenset()) == []
    assert had(frozenset({3})) == [(0, 3), (0, 4), (1, 1)]
    assert had(frozenset({2, 9})) == [(0, 2)]
    assert had(None) == [(0, 2), (0, 3), (0, 4), (1, 5), (1, 1)]


def test_other_items_or_categories_have_another_digest_and_the_same_the_same() -> None:
    mask = np.array([True, False])
    assert Offers(1, allowed_V=mask).digest() == Offers(5, allowed_V=mask.copy()).digest()
    assert len({Offers(1).digest(), Offers(1, allowed_V=mask).digest(), Offers(1, allowed_V=~mask).digest()}) == 3


def recommended(rows: list[Row], artifact: str, offers: Offers, num_reasons: int = 0) -> list[dict]:
    found = recommend(iter(table_of(rows).to_batches()), artifact, offers, 4, num_reasons, offers.k)
    return sorted((r for batch in found for r in batch.to_pylist()), key=lambda r: (r["user_id"], r["rank"]))


NOTHING = {"token": None, "score": None, "probability": None, "reasons": None, "memory_weight": None}


def test_a_user_to_whom_nothing_may_be_offered_has_one_row_that_says_so(artifact: str) -> None:
    rows = [row([list(range(2, NUM_TOKENS))]), row([[2, 3]])]
    found = recommended(rows, artifact, Offers(20, had_by=None), num_reasons=2)
    assert found[0] == {"user_id": "u0", "rank": 1, "source": "abstained", **NOTHING}
    others = found[1:]
    assert {(r["user_id"], r["source"]) for r in others} == {("u1", "model")}
    assert sorted(r["token"] for r in others) == list(range(4, NUM_TOKENS))
    assert all(r["reasons"] is not None for r in others)


def test_below_the_minimum_nothing_is_offered_and_above_it_all_are_as_before(artifact: str) -> None:
    rows = random_rows(30, NUM_TOKENS, NUM_EVENT_TYPES, seed=3)
    everything, bold = (
        recommended(rows, artifact, Offers(13)),
        recommended(rows, artifact, Offers(13, min_probability=0.2)),
    )
    sure = [r for r in everything if r["probability"] >= 0.2]
    assert [r for r in bold if r["source"] == "model"] == sure
    without = {r["user_id"] for r in everything} - {r["user_id"] for r in sure}
    assert {r["user_id"] for r in bold if r["source"] == "abstained"} == without
    assert without
    assert sure
    assert all(math.isfinite(r["score"]) for r in sure)


def test_a_user_of_whose_events_the_model_knows_none_is_left_to_the_fallback_if_there_is_one(artifact: str) -> None:
    rows = [row([[1, NUM_TOKENS + 3]]), row([[1, 2]])]
    found = recommended(rows, artifact, Offers(2, with_fallback=True), num_reasons=1)
    assert found[0] == {"user_id": "u0", "rank": 1, "source": "fallback", **NOTHING}
    assert [(r["user_id"], r["rank"], r["source"]) for r in found[1:]] == [("u1", 1, "model"), ("u1", 2, "model")]
    assert {r["source"] for r in recommended(rows, artifact, Offers(2))} == {"model"}


def test_explained_items_are_those_that_are_listed(artifact: str) -> None:
    rows = random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=4)
    category = np.arange(NUM_TOKENS) % 3 + 1
    offers = Offers(4, category_V=category, max_per_category=1)
    plain, told = recommended(rows, artifact, offers), recommended(rows, artifact, offers, num_reasons=3)
    assert [(r["user_id"], r["token"], r["score"]) for r in plain] == [
        (r["user_id"], r["token"], r["score"]) for r in told
    ]
    assert len(plain) == 6 * 3, "three categories with one item each"
    assert all(len({category[r["token"]] for r in plain if r["user_id"] == user}) == 3 for user in ("u0", "u5"))
    assert all(r["reasons"] is not None for r in told)


def test_batches_without_rows_give_nothing(artifact: str) -> None:
    empty = pa.RecordBatch.from_pylist([], schema=table_of([row([[2]])]).schema)
    assert [r for batch in recommend(iter([empty]), artifact, Offers(2), 4) for r in batch.to_pylist()] == []
