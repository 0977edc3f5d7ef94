"""The benchmark of drift in short: what was broken is told, and what was not is left alone, on a few simulated shops.

The rates over hundreds of weeks are the benchmark's: python -m tests.benchmarks.drift
"""

from __future__ import annotations

import pytest

from tests.benchmarks.drift import NOTHING, measure
from tests.benchmarks.simulated_weeks import FAULTS, SHIFTS

SEEDS = (1, 2)


@pytest.mark.parametrize("kind", ["quiet", "seasonal"])
def test_broken_days_are_errors_that_withhold_training_and_untouched_ones_are_none(kind: str) -> None:
    (of_days,) = measure(SEEDS, kind, window_days=(1,), changes=(NOTHING, *FAULTS)).values()
    untouched = of_days.pop(NOTHING)
    assert untouched.num_errors == 0
    for change, tally in of_days.items():
        assert (tally.num_named, tally.num_errors, tally.advice["withheld"]) == (2, 2, 2), change


def test_shifted_days_of_quiet_weeks_are_told_by_their_measure_and_ask_for_training() -> None:
    (of_days,) = measure(SEEDS, "quiet", window_days=(1,), changes=tuple(SHIFTS)).values()
    for change, tally in of_days.items():
        assert tally.num_named == 2, change
        assert tally.advice["warm_start"] + tally.advice["retrain"] == 2, change


def test_shifted_weeks_are_told_where_days_are_seasonal() -> None:
    told = ("new items flood", "sessions halved", "event types changed")
    (of_weeks,) = measure(SEEDS, "seasonal", window_days=(7,), changes=told).values()
    assert {change: tally.num_named for change, tally in of_weeks.items()} == dict.fromkeys(told, 2)


def test_small_days_are_left_alone() -> None:
    for tallies in measure((1, 2, 3), "small", changes=(NOTHING,)).values():
        assert tallies[NOTHING].num_errors == 0
