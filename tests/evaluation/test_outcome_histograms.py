"""The outcome metrics against scikit-learn, by hand, and under any split into parts."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from llm_spark.evaluation.bootstrap import poisson_weights
from llm_spark.evaluation.outcome_kernel import merged_metrics, partial_histograms

NUM_REPLICATES = 7
AMOUNTS = frozenset({"spend"})
Floats = NDArray[np.float64]
Metrics = dict[tuple[int, int, str], float]


def moments(outcome: str, user: NDArray, label: Floats, prediction: Floats) -> pa.RecordBatch:
    names = {"outcome": [outcome] * len(user), "recommender": ["model"] * len(user)}
    return pa.RecordBatch.from_pydict({**names, "user_hash": user, "label": label, "prediction": prediction})


def metrics(batches: list[pa.RecordBatch]) -> Metrics:
    """(replicate, tenth, name) -> value, each batch counted as a part of its own."""
    parts = [part for batch in batches for part in partial_histograms(iter([batch]), AMOUNTS, NUM_REPLICATES)]
    rows = [row for batch in merged_metrics(iter(parts), AMOUNTS) for row in batch.to_pylist()]
    return {(row["replicate"], row["tenth"], row["name"]): row["value"] for row in rows}


def drawn(num_moments: int, seed: int) -> tuple[NDArray, Floats, Floats]:
    random = np.random.default_rng(seed)
    prediction = random.normal(-1, 2, num_moments)
    label = (random.random(num_moments) < 1 / (1 + np.exp(-prediction + 0.5))).astype(float)
    return random.integers(-9, 9, num_moments), label, prediction


def test_probabilities_are_judged_as_scikit_learn_judges_them_in_every_replicate() -> None:
    user, label, prediction = drawn(3000, seed=1)
    found = metrics([moments("returns", user, label, prediction)])
    probability = 1 / (1 + np.exp(-prediction))
    weights = np.hstack([np.ones((3000, 1)), poisson_weights(user.astype(np.int64), NUM_REPLICATES)])
    for replicate in range(1 + NUM_REPLICATES):
        weight = weights[:, replicate]
        expected = {
            "auc": roc_auc_score(label, prediction, sample_weight=weight),
            "average_precision": average_precision_score(label, prediction, sample_weight=weight),
            "brier": brier_score_loss(label, probability, sample_weight=weight),
            "share": np.average(label, weights=weight),
        }
        for name, value in expected.items():
            assert found[replicate, 0, name] == pytest.approx(value, abs=2e-3), (replicate, name)
        assert found[replicate, 0, "brier"] == pytest.approx(expected["brier"], rel=1e-12)


def test_lift_and_gain_of_tenths_by_hand() -> None:
    # Twenty moments, the likeliest first: of the first tenth both came about, of the second one, of the rest one, the last.
    label = np.array([1, 1, 1, 0] + [0] * 15 + [1], float)
    prediction = np.linspace(8, -8, 20)
    found = metrics([moments("returns", np.arange(20), label, prediction)])
    assert [found[0, tenth, "gain"] for tenth in (1, 2, 3, 9, 10)] == pytest.approx([0.5, 0.75, 0.75, 0.75, 1.0])
    assert [found[0, tenth, "lift"] for tenth in (1, 2, 3, 9, 10)] == pytest.approx([5.0, 2.5, 0.0, 0.0, 2.5])


def test_calibration_error_by_hand() -> None:
    # Ten moments at .25 of which five came about, and ten at .75 of which five: each bin is .25 off.
    prediction = np.repeat(np.log([1 / 3, 3.0]), 10)
    label = np.tile(np.repeat([0.0, 1.0], 5), 2)
    found = metrics([moments("returns", np.arange(20), label, prediction)])
    assert found[0, 0, "calibration_error"] == pytest.approx(0.25)
    assert found[0, 0, "brier"] == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found[0, 0, "brier_skill"] == pytest.approx(1 - (0.25**2 + 0.75**2) / 2 / 0.25)
    assert found[0, 0, "auc"] == pytest.approx(0.5)


def test_amounts_count_in_their_own_unit() -> None:
    amount = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 30.0, 60.0])
    told = np.arange(10, dtype=float)
    found = metrics([moments("spend", np.arange(10), np.log1p(amount), told)])
    assert [found[0, tenth, "gain"] for tenth in (1, 2, 3, 10)] == pytest.approx([0.6, 0.9, 1.0, 1.0])
    assert found[0, 1, "lift"] == pytest.approx(6.0)
    assert found[0, 0, "mean_amount"] == pytest.approx(10.0)
    assert found[0, 0, "squared_error_log"] == pytest.approx(np.square(told - np.log1p(amount)).mean())


@pytest.mark.parametrize("seed", range(3))
def test_any_split_into_parts_gives_the_same_metrics(seed: int) -> None:
    user, label, prediction = drawn(500, seed)
    whole = moments("returns", user, label, prediction)
    order = np.random.default_rng(seed).permutation(500)
    shuffled = whole.take(pa.array(order))
    cuts = [0, 1, 40, 250, 500]
    parts = [shuffled.slice(low, high - low) for low, high in itertools.pairwise(cuts)]
    assert metrics(parts) == pytest.approx(metrics([whole]), rel=1e-9)


def test_where_nothing_came_about_what_is_not_defined_is_left_out() -> None:
    user, _, prediction = drawn(50, seed=4)
    names = {name for _, _, name in metrics([moments("returns", user, np.zeros(50), prediction)])}
    assert names == {"share", "mean_probability", "brier", "calibration_error"}


def test_the_only_user_is_told_and_of_several_none() -> None:
    def only_users(user: list[int]) -> set[int | None]:
        batch = moments("returns", np.array(user), np.ones(len(user)), np.zeros(len(user)))
        parts = [p for row in range(len(user)) for p in partial_histograms(iter([batch.slice(row, 1)]), AMOUNTS, 3)]
        return {row["only_user"] for made in merged_metrics(iter(parts), AMOUNTS) for row in made.to_pylist()}

    assert only_users([5, 5, 5]) == {5}
    assert only_users([5, 5, 6]) == {None}
