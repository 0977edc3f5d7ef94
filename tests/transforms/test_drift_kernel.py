"""The statistics of drift: by hand, from tables of F and t, against scipy, and by laws."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from scipy import stats

from llm_spark.transforms.drift_kernel import (
    Calendar,
    UserSums,
    compare_mix,
    compare_numbers,
    compare_shares,
    depth_of,
    psi,
    psi_parts,
    wilson_interval,
)


def counts(*numbers: float) -> np.ndarray:
    return np.array(numbers, float)


def test_the_index_of_three_categories_by_hand() -> None:
    # Half an event is added to each: 50.5, 30.5 and 20.5 of 101.5, and the other way round. 2 * (30 / 101.5) * ln(50.5 / 20.5) = 0.5329.
    assert psi(counts(50, 30, 20), counts(20, 30, 50)) == pytest.approx(0.5329, abs=1e-4)


def test_a_category_that_is_empty_in_both_adds_nothing_and_takes_nothing() -> None:
    assert psi(counts(50, 0, 20), counts(20, 0, 50)) == psi(counts(50, 20), counts(20, 50))
    assert psi_parts(counts(50, 0, 20), counts(20, 0, 50))[1] == 0


def test_the_index_is_the_sum_of_both_relative_entropies() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        before, now = rng.integers(0, 40, 12), rng.integers(0, 40, 12)
        used = (before > 0) | (now > 0)
        p, q = before[used] + 0.5, now[used] + 0.5
        assert psi(before.astype(float), now.astype(float)) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p))


def test_without_change_the_index_is_in_the_mean_what_yurdakul_found() -> None:
    rng = np.random.default_rng(2)
    shares = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    found = [
        psi(rng.multinomial(2_000, shares).astype(float), rng.multinomial(500, shares).astype(float))
        for _ in range(3_000)
    ]
    assert np.mean(found) == pytest.approx(4 * (1 / 2_000 + 1 / 500), rel=0.05)


@pytest.mark.parametrize(("num", "depth"), [(4, 1), (5, 1), (6, 2), (9, 3), (12, 4), (50, 4)])
def test_a_window_is_compared_with_a_third_of_the_earlier_ones_and_four_at_most(num: int, depth: int) -> None:
    assert depth_of(num) == depth


def test_the_limit_of_a_mix_is_the_earlier_mean_times_a_quantile_of_f() -> None:
    # Two mixes in turns: each earlier index is the same, so that only chance is left, of two degrees of freedom for three categories. The
    # table of F has 5.14 for 2 and 3 * 2 degrees at 5 %, and 10.92 at 1 %.
    first, second = counts(500, 300, 200), counts(520, 290, 190)
    windows = np.stack([first, second, first, second, first])
    found = compare_mix(windows, np.full(5, 1000.0), [0.05, 0.01])
    index = psi(first, second)
    assert (found.value, found.usual) == (pytest.approx(index), pytest.approx(index))
    assert found.highs == (pytest.approx(5.14 * index, rel=1e-3), pytest.approx(10.92 * index, rel=1e-3))
    assert (found.depth, found.num_calibrations) == (1, 3)


def test_a_smaller_window_is_allowed_more_and_a_larger_one_no_less() -> None:
    windows = np.stack([counts(500, 300, 200), counts(520, 290, 190)] * 3)[:5]
    users = np.full(5, 1000.0)
    usual = compare_mix(windows, users, [0.05]).highs[0]
    users[0] = 250  # 1 / 250 + 1 / 1000 is two and a half times 1 / 1000 + 1 / 1000
    assert compare_mix(windows, users, [0.05]).highs[0] == pytest.approx(2.5 * usual)
    users[0] = 4000
    assert compare_mix(windows, users, [0.05]).highs[0] == pytest.approx(usual)


def test_a_swing_that_was_there_before_is_within_the_limits() -> None:
    usual, sale = counts(900, 80, 20), counts(500, 400, 100)
    windows = np.stack([sale, *[usual] * 3, sale, *[usual] * 3, sale, *[usual] * 4])
    found = compare_mix(windows, np.full(len(windows), 1000.0), [0.5])
    assert found.value <= found.highs[0]
    numbers = compare_numbers(np.where(np.arange(13) % 4 == 0, 3_000.0, 1_000.0), [0.5])
    assert numbers.lows[0] <= 3_000 <= numbers.highs[0]


def test_the_limits_of_a_number_by_hand() -> None:
    # Logarithms .1, 0, .1, 0 above a million: the steps are .1, -.1 and .1, their mean 1/30, their variance 4/3 of .01, and 2 degrees of freedom
    # have 4.303 at 2.5 %. From the window before, .1: .1 + .0333 +- 4.303 * sqrt(4/3 * 4/3) * .1 = .1333 +- .5737.
    million = 1e6 * np.exp([0.0, 0.1, 0.0, 0.1, 0.0])
    found = compare_numbers(million, [0.05])
    assert found.usual == pytest.approx(1e6 * np.exp(0.1333), rel=1e-3)
    assert found.lows[0] == pytest.approx(1e6 * np.exp(0.1333 - 0.5737), rel=1e-3)
    assert found.highs[0] == pytest.approx(1e6 * np.exp(0.1333 + 0.5737), rel=1e-3)


def test_growth_at_a_steady_rate_is_expected() -> None:
    growing = 10_000 * 1.1 ** np.arange(13.0)[::-1]
    found = compare_numbers(growing, [0.01])
    assert found.usual == pytest.approx(growing[0], rel=1e-3)
    assert found.lows[0] < growing[0] < found.highs[0]
    assert growing[0] / 1.3 < found.lows[0], "and a stop of growth for three weeks is beyond it"


def test_a_share_is_allowed_what_counting_alone_makes_of_it() -> None:
    # Earlier shares that are equal by luck: the width comes from the counts. Angle of one half, pi / 2; variance 1/100.5 + 1/100.5 for a depth
    # of one, times 4/3 for the mean of three; t with twice 2 degrees of freedom, 2.776 at 2.5 %.
    found = compare_shares(np.full(5, 50.0), np.full(5, 100.0), np.full(5, 100.0), [0.05])
    width = 2.776 * np.sqrt(2 / 100.5 * 4 / 3)
    assert found.lows[0] == pytest.approx(np.sin((np.pi / 2 - width) / 2) ** 2, abs=1e-4)
    assert found.highs[0] == pytest.approx(np.sin((np.pi / 2 + width) / 2) ** 2, abs=1e-4)
    one_sided = compare_shares(np.full(5, 50.0), np.full(5, 100.0), np.full(5, 100.0), [0.025], sides=1)
    assert one_sided.lows[0] == pytest.approx(found.lows[0])


def test_nothing_and_everything_are_shares_too() -> None:
    none = compare_shares(np.array([50.0, 0, 0, 0, 0]), np.full(5, 100.0), np.full(5, 100.0), [0.01])
    assert none.value == 0.5 > none.highs[0]
    every = compare_shares(np.array([50.0, 100, 100, 100, 100]), np.full(5, 100.0), np.full(5, 100.0), [0.01])
    assert every.value == 0.5 < every.lows[0]
    assert every.highs[0] == 1.0


@pytest.mark.parametrize("num_references", [4, 6, 12])
def test_of_windows_that_only_chance_tells_apart_as_many_pass_the_limit_as_asked_for(num_references: int) -> None:
    rng = np.random.default_rng(3)
    shares = np.arange(1.0, 9.0) / 36
    num, passed = 1_500, 0
    for _ in range(num):
        windows = rng.multinomial(400, shares, num_references + 1).astype(float)
        found = compare_mix(windows, np.full(num_references + 1, 400.0), [0.05])
        passed += found.value > found.highs[0]
    # The limit never lies within what was there before, which a few earlier windows reach more often than one in twenty.
    assert passed / num < 0.075
    if num_references == 12:
        assert passed / num > 0.025


def test_fewer_than_four_earlier_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 earlier windows: give 4 or more"):
        compare_numbers(np.full(4, 10.0), [0.05])


def test_windows_have_the_same_weekdays_and_do_not_overlap() -> None:
    sundays = Calendar(date(2025, 3, 2), window_days=1, num_references=4)
    assert [sundays.days(window)[1] for window in (0, 1, 4)] == [date(2025, 3, 2), date(2025, 2, 23), date(2025, 2, 2)]
    tens = Calendar(date(2025, 3, 2), window_days=10, num_references=1)
    assert tens.days(0) == (date(2025, 2, 21), date(2025, 3, 2))
    assert tens.days(1) == (date(2025, 2, 7), date(2025, 2, 16))
    assert tens.name(1) == "2025-02-07 to 2025-02-16"


def test_a_window_that_touches_an_excluded_date_is_excluded() -> None:
    weeks = Calendar(date(2025, 3, 2), 7, 2, frozenset({date(2025, 2, 17)}))
    assert [weeks.excluded_day(window) is not None for window in range(3)] == [False, True, False]


def test_wilsons_interval_is_scipys() -> None:
    for hits, trials in ((8, 10), (0, 12), (300, 1204)):
        theirs = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits / trials, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert wilson_interval(float("nan"), 0) == (0.0, 1.0)


def sums(trials: np.ndarray, hits: np.ndarray) -> UserSums:
    products = (trials, hits, trials * trials, hits * hits, hits * trials)
    return UserSums(len(trials), *(int(product.sum()) for product in products))


def test_users_with_one_trial_each_are_as_many_independent_trials() -> None:
    ones = np.ones(40, int)
    assert sums(ones, np.arange(40) % 4 == 0).num_independent == pytest.approx(40)


def test_users_who_always_do_the_same_tell_no_more_by_doing_it_often() -> None:
    seven = np.full(40, 7)
    found = sums(seven, 7 * (np.arange(40) % 4 == 0))
    assert (found.share, found.num_independent) == (0.25, pytest.approx(40))


def test_the_error_over_users_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    trials = rng.integers(1, 12, 300)
    hits = rng.binomial(trials, rng.choice([0.05, 0.7], 300))
    drawn = rng.integers(300, size=(4_000, 300))
    error = (hits[drawn].sum(axis=1) / trials[drawn].sum(axis=1)).std()
    found = sums(trials, hits)
    assert np.sqrt(found.share * (1 - found.share) / found.num_independent) == pytest.approx(error, rel=0.05)
