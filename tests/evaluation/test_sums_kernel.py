"""Every metric against an independent computation, whatever parts the positions come in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from llm_spark.evaluation.bootstrap import poisson_weights
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.slices import CONFIDENCES, SLICES
from llm_spark.evaluation.sums_kernel import MetricRules, merged_sums, partial_sums
from llm_spark.schemas import EVALUATION
from tests.evaluation.positions import (
    NUM_ITEMS,
    NUM_TOKENS,
    batch_of,
    by_name,
    items_of,
    measured,
    random_positions,
    sums_of,
)

KS = (3, 10)
ROUNDED = {"abs": 1e-6}
"""Gains are rounded to multiples of 2^-24, and torchmetrics counts in float32."""


def rules_of(seed: int = 0, num_replicates: int = 50, with_categories: bool = True) -> MetricRules:
    return MetricRules(KS, items_of(seed, with_categories), num_replicates)


def test_ranking_metrics_equal_those_of_torchmetrics_on_random_scores() -> None:
    random = np.random.default_rng(1)
    rows = random_positions(120, 20, seed=1)
    scores = random.normal(size=(len(rows), NUM_ITEMS))
    relevant = np.zeros((len(rows), NUM_ITEMS), bool)
    for row, score, target in zip(rows, scores, relevant, strict=True):
        target[row["token"] - 2 if row["token"] > 1 else 0] = True
        row["token"] = 2 + int(target.argmax())
        row["rank"] = int((score >= score[target]).sum())
    sessions = np.cumsum([row["session_position"] == 0 for row in rows])
    for session in np.unique(sessions):
        of_session = [row for row, at in zip(rows, sessions, strict=True) if at == session]
        of_session[0]["session_rank"] = min(row["rank"] for row in of_session)
    found = by_name(measured(rows, rules_of()).estimates())
    pairs = [(torch.tensor(score), torch.tensor(target)) for score, target in zip(scores, relevant, strict=True)]
    for k in KS:
        recalls = [float(retrieval_recall(*pair, top_k=k)) for pair in pairs]
        assert found[f"recall@{k}"].value == pytest.approx(np.mean(recalls), **ROUNDED)
        expected = np.mean([float(retrieval_reciprocal_rank(*pair, top_k=k)) for pair in pairs])
        assert found[f"mrr@{k}"].value == pytest.approx(expected, **ROUNDED)
        expected = np.mean([float(retrieval_normalized_dcg(*pair, top_k=k)) for pair in pairs])
        assert found[f"ndcg@{k}"].value == pytest.approx(expected, **ROUNDED)
        # Of a session: whether any of its positions' lists hits.
        hits = [float(retrieval_hit_rate(*pair, top_k=k)) for pair in pairs]
        of_sessions = [max(h for h, at in zip(hits, sessions, strict=True) if at == s) for s in np.unique(sessions)]
        assert found[f"hit_rate@{k}"].value == pytest.approx(np.mean(of_sessions), **ROUNDED)
        assert found[f"hit_rate@{k}"].num_examples == len(of_sessions) < len(rows) == found[f"recall@{k}"].num_examples
    assert found["accuracy"].value == pytest.approx((scores.argmax(1) == relevant.argmax(1)).mean(), **ROUNDED)


def test_ties_count_against_the_true_item_as_scikit_learn_counts_them() -> None:
    random = np.random.default_rng(2)
    rows = random_positions(100, 9, seed=2)
    scores = random.integers(0, 4, (len(rows), NUM_ITEMS)).astype(float)
    targets = random.integers(0, NUM_ITEMS, len(rows))
    relevant = np.eye(NUM_ITEMS, dtype=int)[targets]
    for row, score, target in zip(rows, scores, targets, strict=True):
        row |= {"token": 2 + int(target), "rank": int((score >= score[target]).sum())}
    found = by_name(measured(rows, MetricRules((3, NUM_ITEMS), items_of(0), 40)).estimates())
    expected = label_ranking_average_precision_score(relevant, scores)
    assert found[f"mrr@{NUM_ITEMS}"].value == pytest.approx(expected, **ROUNDED)


def test_list_metrics_equal_plain_loops_over_the_lists() -> None:
    rows = random_positions(150, 15, seed=3)
    tokens = list(range(2, NUM_TOKENS))
    random = np.random.default_rng(3)
    count = dict(zip(tokens, random.integers(0, 9, NUM_ITEMS).tolist(), strict=True))
    category = dict(zip(tokens, random.integers(0, 4, NUM_ITEMS).tolist(), strict=True))
    columns = [np.array(list(of.values())) for of in (count, category)]
    rules = MetricRules(KS, Items.counted(np.array(tokens), *columns), 40)
    found = by_name(measured(rows, rules).estimates())

    def percentile(token: int) -> float:
        if token < 2:
            return 0.0
        less = sum(count[other] < count[token] for other in tokens)
        as_much = sum(count[other] == count[token] for other in tokens)
        return (less + as_much / 2) / NUM_ITEMS

    for k in KS:
        listed = [(token, row["token"]) for row in rows for token in row["top"][:k]]
        bits = [-np.log2(max(count[token], 1) / sum(count.values())) for token, _ in listed]
        assert found[f"novelty@{k}"].value == pytest.approx(np.mean(bits), **ROUNDED)
        assert found[f"novelty@{k}"].num_examples == len(listed)
        bias = [percentile(token) - percentile(target) for token, target in listed]
        assert found[f"popularity_bias@{k}"].value == pytest.approx(np.mean(bias), **ROUNDED)
        coverage = len({token for token, _ in listed}) / NUM_ITEMS
        assert found[f"coverage@{k}"].value == pytest.approx(coverage, abs=1e-12)
        shares = []
        for row in rows:
            categories = [category[token] for token in row["top"][:k] if category[token]]
            pairs = list(itertools.combinations(categories, 2))
            shares += [np.mean([a != b for a, b in pairs])] if pairs else []
        assert found[f"diversity@{k}"].value == pytest.approx(np.mean(shares), **ROUNDED)
        assert found[f"diversity@{k}"].num_examples == len(shares)


def test_without_categories_there_is_no_diversity() -> None:
    found = by_name(measured(random_positions(20, 4, seed=1), rules_of(with_categories=False)).estimates())
    assert {name.partition("@")[0] for name in found} == {
        *("accuracy", "recall", "mrr", "ndcg", "hit_rate", "novelty", "popularity_bias", "coverage"),
        *("confidence", "calibration_error"),
    }


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_parts=st.integers(1, 6),
    batch_rows=st.integers(1, 60),
)
def test_any_split_into_parts_and_batches_in_any_order_gives_the_same_bytes(
    seed: int, num_parts: int, batch_rows: int
) -> None:
    rules, rows = rules_of(seed), random_positions(60, 12, seed)
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    parts = [shuffled[part::num_parts] for part in range(num_parts)]
    assert sums_of(parts, rules, batch_rows) == sums_of([rows], rules)


def test_a_replicate_is_the_metric_with_every_user_counted_as_often_as_the_weights_say() -> None:
    rows, rules = random_positions(80, 10, seed=5), rules_of(num_replicates=40)
    hashes = np.array([row["user_hash"] for row in rows])
    users, user_of_row = np.unique(hashes, return_inverse=True)
    weights = poisson_weights(users, 40)[user_of_row].astype(int)
    low, high = [], []
    for replicate in range(40):
        counted = [row["rank"] or 99 for row, n in zip(rows, weights[:, replicate], strict=True) for _ in range(n)]
        low.append(np.mean([rank <= 10 for rank in counted]))
        high.append(np.mean([1 / rank if rank <= 10 else 0 for rank in counted]))
    found = by_name(measured(rows, rules).estimates())
    expected = np.percentile(low, [2.5, 97.5])
    assert [found["recall@10"].ci_low, found["recall@10"].ci_high] == pytest.approx(expected, **ROUNDED)
    expected = np.percentile(high, [2.5, 97.5])
    assert [found["mrr@10"].ci_low, found["mrr@10"].ci_high] == pytest.approx(expected, **ROUNDED)


def test_a_slice_holds_the_positions_that_its_name_says() -> None:
    rows = random_positions(400, 30, seed=6)
    found = measured(rows, rules_of()).estimates()
    belongs = {
        "first_in_session": lambda row: row["session_position"] == 0,
        "within_session": lambda row: row["session_position"] > 0,
        "session_position_2_to_4": lambda row: 2 <= row["session_position"] <= 4,
        "history_new": lambda row: row["sessions_before"] == 0,
        "history_few": lambda row: 1 <= row["sessions_before"] <= 4,
        "history_many": lambda row: row["sessions_before"] >= 5,
        "gap_below_hour": lambda row: row["gap_seconds"] is not None and 60 <= row["gap_seconds"] < 3600,
        "gap_week_or_more": lambda row: row["gap_seconds"] is not None and row["gap_seconds"] >= 7 * 86400,
        "item_unknown": lambda row: row["token"] == 1,
    }
    for name, is_inside in belongs.items():
        inside = [row["rank"] for row in rows if is_inside(row)]
        estimate = by_name(found, name)["recall@10"]
        assert estimate.num_examples == len(inside) > 0, name
        assert estimate.value == pytest.approx(np.mean([rank is not None and rank <= 10 for rank in inside]))
        ranking = {f"{metric}@{k}" for metric in ("recall", "mrr", "ndcg") for k in KS}
        assert set(by_name(found, name)) == {"accuracy", "confidence", *ranking}


def test_the_table_evaluation_explains_every_slice() -> None:
    (comment,) = [field.metadata["comment"] for field in EVALUATION.schema.fields if field.name == "slice"]
    middle = {f"{name}_{place}" for name in ("item_popularity_decile", "confidence") for place in range(2, 10)}
    assert [name for name in SLICES if name not in middle and name not in comment] == []


def test_popularity_deciles_are_tenths_of_the_items_by_how_often_training_predicts_them() -> None:
    items = Items.counted(np.arange(2, 22), np.array([5 * n for n in range(20)]))
    assert items.decile_V[2:].tolist() == [1 + n // 2 for n in range(20)]
    equally_popular = Items.counted(np.arange(2, 12), np.full(10, 7))
    assert set(equally_popular.decile_V[2:].tolist()) == {6}, "in the middle"


def test_a_difference_is_paired_and_needs_the_same_positions() -> None:
    rows, rules = random_positions(90, 12, seed=7), rules_of(num_replicates=200)
    better = [row | {"rank": row["rank"] and max(1, row["rank"] - 1)} for row in rows]
    ours, theirs = measured(better, rules), measured(rows, rules)
    found = by_name(ours.less(theirs))["recall@10"]
    both = by_name(ours.estimates())["recall@10"], by_name(theirs.estimates())["recall@10"]
    assert found.value == pytest.approx(both[0].value - both[1].value)
    assert 0 <= found.ci_low <= found.value <= found.ci_high
    assert found.ci_high - found.ci_low < both[0].ci_high - both[0].ci_low, "what both have in common is gone"
    assert {(e.value, e.ci_low, e.ci_high) for e in by_name(ours.less(ours)).values()} == {(0.0, 0.0, 0.0)}
    with pytest.raises(ValueError, match="the same positions"):
        ours.less(measured(rows[:-1], rules))


def test_calibration_is_that_of_plain_loops_over_bins_and_bounds() -> None:
    rows = random_positions(300, 20, seed=9)
    estimates = measured(rows, rules_of()).estimates()
    sure, hit = np.float32([row["confidence"] for row in rows]), np.array([row["rank"] == 1 for row in rows])
    bounds = [0, *CONFIDENCES, 2]
    error = 0.0
    for number, (low, high) in enumerate(itertools.pairwise(bounds), start=1):
        inside = (low <= sure) & (sure < high)
        if inside.any():
            found = by_name(estimates, f"confidence_{number}")
            assert found["accuracy"].value == pytest.approx(hit[inside].mean())
            assert found["confidence"].value == pytest.approx(sure[inside].mean(), abs=1e-6)
            assert found["accuracy"].num_examples == inside.sum()
            error += abs(hit[inside].mean() - sure[inside].mean()) * inside.mean()
    overall = by_name(estimates)["calibration_error"]
    assert overall.value == pytest.approx(error, abs=1e-6)
    assert overall.num_examples == len(rows)
    for bound in CONFIDENCES:
        found = by_name(estimates, f"confidence_at_least_{bound:g}")
        assert found["answered"].value == pytest.approx((sure >= bound).mean())
        assert found["accuracy"].value == pytest.approx(hit[sure >= bound].mean())
        assert found["answered"].ci_low < found["answered"].value < found["answered"].ci_high or bound < 0.02


def test_who_says_no_probability_has_no_calibration_and_is_compared_with_one_who_does() -> None:
    rows, rules = random_positions(60, 9, seed=10), rules_of()
    mute = measured([row | {"confidence": None} for row in rows], rules)
    names = {(e.slice, e.name) for e in mute.estimates()}
    assert not [
        key for key in names if "confidence" in key[0] or key[1] in ("confidence", "calibration_error", "answered")
    ]
    assert {e.value for e in mute.less(measured(rows, rules))} == {0.0}


def test_of_one_user_every_figure_lacks_its_interval() -> None:
    estimates = measured(random_positions(30, 1, seed=8), rules_of()).estimates()
    assert {(estimate.ci_low, estimate.ci_high) for estimate in estimates} == {(None, None)}
    assert {"coverage@10", "recall@3"} <= set(by_name(estimates))


def test_a_part_without_positions_adds_nothing() -> None:
    rules, rows = rules_of(), random_positions(20, 5, seed=1)
    assert sums_of([[], rows, []], rules) == sums_of([rows], rules)
    assert list(partial_sums(iter([batch_of([])]), rules)) == []
    assert list(merged_sums(iter([]), rules)) == []


def test_a_list_that_names_what_is_no_item_of_the_vocabulary_is_refused() -> None:
    rows = random_positions(5, 2, seed=1)
    rows[0]["top"] = [2, 99]
    with pytest.raises(ValueError, match=r"token 99 is recommended, and the vocabulary ends at 41"):
        sums_of([rows], rules_of())
