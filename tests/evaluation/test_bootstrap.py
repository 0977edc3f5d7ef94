"""The weights are Poisson draws that anybody finds again; the intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llm_spark.evaluation.bootstrap import jackknife_interval, percentile_interval, poisson_weights, user_groups
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.sums_kernel import ListedItems, MetricRules


def hashes(num_users: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63, num_users)


@pytest.mark.parametrize("users", [np.arange(2000), hashes(2000)], ids=["neighbouring hashes", "random hashes"])
def test_weights_are_independent_draws_from_poisson_of_mean_one(users: np.ndarray) -> None:
    weights = poisson_weights(users.astype(np.int64), 250).astype(float)
    counts = np.bincount(weights.astype(int).ravel(), minlength=7)
    expected = stats.poisson(1).pmf(np.arange(6)) * weights.size
    tail = np.append(counts[:6], counts[6:].sum()), np.append(expected, weights.size - expected.sum())
    assert stats.chisquare(*tail).pvalue > 1e-4
    # Correlations of 250 replicates over 2,000 users, and of 2,000 users over 250 replicates, lie where those of noise lie.
    for table in (weights, weights[:250].T):
        correlations = np.corrcoef(table, rowvar=False)[np.triu_indices(table.shape[1], 1)]
        assert abs(correlations.mean()) < 4 / np.sqrt(len(correlations) * len(table))
        assert np.abs(correlations).max() < 6 / np.sqrt(len(table))


def test_a_weight_depends_on_user_seed_and_replicate_alone() -> None:
    users = hashes(50)
    weights = poisson_weights(users, 30)
    order = np.random.default_rng(1).permutation(50)
    assert (poisson_weights(users[order], 101)[:, :30] == weights[order]).all()
    assert (poisson_weights(users, 30, seed=7) != weights).mean() > 0.5


def replicate_ratios(gains: np.ndarray, positions: np.ndarray, users: np.ndarray, num_replicates: int) -> np.ndarray:
    weights = poisson_weights(users, num_replicates).T.astype(float)
    return (weights @ gains) / (weights @ positions)


def test_intervals_agree_with_scipys_bootstrap_of_the_same_users() -> None:
    random = np.random.default_rng(4)
    positions = 1.0 + random.poisson(4, 150)
    gains = random.binomial(positions.astype(int), random.beta(2, 3, 150)).astype(float)
    low, high = percentile_interval(replicate_ratios(gains, positions, hashes(150), 4000))
    theirs = stats.bootstrap(
        (gains, positions),
        lambda gain, count, axis: gain.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < 0.1 * width
    assert abs(high - theirs.high) < 0.1 * width


def test_intervals_of_clustered_positions_hold_the_truth_at_the_nominal_rate() -> None:
    true_difference = stats.beta(1, 1.5).expect(lambda chance: np.minimum(chance, 0.05))
    # Half of a user's luck is the user's own: intervals that took positions as independent would hold it far less often.
    random = np.random.default_rng(6)
    num_trials, held, held_by_independence, held_difference = 400, 0, 0, 0
    for trial in range(num_trials):
        users = hashes(80, trial)
        positions = 1 + random.poisson(8, 80)
        chance = random.beta(1, 1.5, 80)
        gains, others = (random.binomial(positions, np.clip(chance - less, 0, 1)) for less in (0.0, 0.05))
        ratios = replicate_ratios(gains, positions, users, 400)
        low, high = percentile_interval(ratios)
        held += low <= 0.4 <= high
        mean = gains.sum() / positions.sum()
        held_by_independence += abs(mean - 0.4) <= 1.96 * np.sqrt(mean * (1 - mean) / positions.sum())
        low, high = percentile_interval(ratios - replicate_ratios(others, positions, users, 400))
        held_difference += low <= true_difference <= high
    assert 0.91 <= held / num_trials <= 0.98
    assert 0.91 <= held_difference / num_trials <= 0.98
    assert held_by_independence / num_trials < 0.8


def test_the_jackknife_holds_the_coverage_of_other_users_at_least_at_the_nominal_rate() -> None:
    random = np.random.default_rng(7)
    num_items, num_users, length = 300, 150, 5
    shares = 1 / np.arange(1, num_items + 1)
    shares /= shares.sum()
    rules = MetricRules((length,), Items.counted(np.arange(2, 2 + num_items), np.ones(num_items, int)), 40)

    def lists() -> np.ndarray:
        keys = np.log(random.random((num_users, num_items))) / shares
        return 2 + np.argpartition(-keys, length, axis=1)[:, :length]

    truth = np.mean([len(np.unique(lists())) for _ in range(400)]) / num_items
    held = 0
    for trial in range(200):
        listed = ListedItems.empty(rules)
        listed.note(rules, lists(), user_groups(hashes(num_users, trial)))
        covered = listed.num_covered(1)[0] / num_items
        low, high = jackknife_interval(covered[0], covered[1:])
        assert low < covered[0] < high
        held += low <= truth <= high
    assert held / 200 >= 0.92


def test_a_replicate_in_which_nobody_was_drawn_is_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 0.5, 0.5, np.nan])) == (0.5, 0.5)
