"""Outcome labels against hand-worked histories and a brute-force search through all events."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms import outcome_kernel
from llm_spark.transforms.history_kernel import TEST, TRAIN, VALIDATION
from llm_spark.transforms.outcome_kernel import OutcomeRule, OutcomeRules, UserOutcomes

DAY = 86_400 * 1_000_000
VIEW, BUY = 2, 3
BUYS_WITHIN_10 = OutcomeRule(frozenset({BUY}), 10 * DAY)
SPENDS_WITHIN_10 = OutcomeRule(frozenset({BUY}), 10 * DAY, is_amount=True)


def user(days: list[float], types: list[int], values: list[float], rules: OutcomeRules) -> UserOutcomes:
    return UserOutcomes(np.array([round(day * DAY) for day in days]), np.array(types), np.array(values, float), rules)


def known_until(day: float, *rules: OutcomeRule) -> OutcomeRules:
    """The same end for every split."""
    return OutcomeRules(rules, (round(day * DAY),) * 3)


def after_events(moments: outcome_kernel.Moments) -> list[tuple[int, list[float]]]:
    """Place and labels of the moments right after an event."""
    return [
        (int(place), labels.tolist())
        for place, elapsed, labels in zip(moments.place_L, moments.elapsed_seconds_L, moments.label_LO, strict=True)
        if elapsed == 0
    ]


def test_labels_tell_whether_and_for_how_much_the_event_follows_within_the_days() -> None:
    rules = known_until(100, BUYS_WITHIN_10, SPENDS_WITHIN_10)
    history = user([0, 1, 11, 30], [VIEW, BUY, BUY, VIEW], [math.nan, 5, 20, math.nan], rules)
    found = after_events(history.moments(TRAIN, 0, 0, 4))
    # From day 0: the purchase of day 1 alone. From day 1: that of day 11, exactly ten days later. Then none.
    assert [(place, [label[0], round(math.expm1(label[1]), 4)]) for place, label in found] == [
        (0, [1, 5]),
        (1, [1, 20]),
        (2, [0, 0]),
        (3, [0, 0]),
    ]


def test_events_of_one_instant_are_one_moment_and_do_not_follow_each_other() -> None:
    history = user([3, 3, 3], [BUY, BUY, BUY], [1, 1, 1], known_until(100, BUYS_WITHIN_10))
    assert after_events(history.moments(TRAIN, 0, 0, 3)) == [(2, [0])]


def test_a_window_that_is_not_closed_before_the_splits_end_has_no_label_even_if_the_event_followed() -> None:
    # On day 20 training ends: the windows from days 9.9 and before are closed, that of day 10 ends on day 20 itself.
    history = user([9.9, 10, 11], [VIEW, VIEW, BUY], [0, 0, 0], known_until(20, BUYS_WITHIN_10))
    assert after_events(history.moments(TRAIN, 0, 0, 3)) == [(0, [1])]


def test_each_split_has_an_end_of_its_own() -> None:
    rules = OutcomeRules((BUYS_WITHIN_10,), (20 * DAY, 40 * DAY, 60 * DAY))
    history = user([8, 12, 25, 33, 45, 55], [VIEW, BUY, VIEW, VIEW, VIEW, BUY], [0] * 6, rules)
    found = {split: after_events(history.moments(split, 0, 0, 6)) for split in (TRAIN, VALIDATION, TEST)}
    # Those of day 12, 33 and 55 look beyond the end of their split; a split asks of its own days alone.
    assert found == {TRAIN: [(0, [1])], VALIDATION: [(2, [0])], TEST: [(4, [1])]}


def test_a_moment_known_for_one_outcome_alone_keeps_the_other_censored() -> None:
    within_a_day = OutcomeRule(None, DAY)
    history = user([5, 5.5], [VIEW, VIEW], [0, 0], known_until(10, within_a_day, BUYS_WITHIN_10))
    ((_, first), (_, second)) = after_events(history.moments(TRAIN, 0, 0, 2))
    assert (first[0], second[0]) == (1, 0)
    assert math.isnan(first[1])
    assert math.isnan(second[1])


def test_the_silent_are_asked_about_once_a_week_until_their_next_event() -> None:
    # Snapshots lie a moment before days 70, 63, ..., 42, 35, ...; that before day 42 is the last whose 28 days end before day 70.
    within_28 = OutcomeRule(frozenset({BUY}), 28 * DAY)
    history = user([10.5, 31], [VIEW, BUY], [0, 0], known_until(70, within_28))
    moments = history.moments(TRAIN, 0, 0, 2)
    days = 10.5 + moments.elapsed_seconds_L / 86_400
    assert [(int(place), round(float(day), 3)) for place, day in zip(moments.place_L, days, strict=True)] == [
        (0, 10.5),
        (0, 14.0),
        (0, 21.0),
        (0, 28.0),
        (1, 10.5),  # of the second event itself, day 31
        (1, 14.5),  # day 35
        (1, 21.5),  # and day 42
    ]
    # All before day 31 see it within 28 days; after it nothing follows.
    assert moments.label_LO.ravel().tolist() == [1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(("window_days", "snapshot_days"), [(1, 1), (8, 2), (20, 5), (28, 7), (90, 7)])
def test_snapshots_are_a_quarter_of_the_shortest_window_apart_between_a_day_and_a_week(
    window_days: int, snapshot_days: int
) -> None:
    rules = known_until(200, OutcomeRule(None, window_days * DAY), OutcomeRule(None, 100 * DAY))
    silent = user([0], [VIEW], [0], rules).moments(TRAIN, 0, 0, 1).elapsed_seconds_L
    assert set(np.diff(silent[1:]).tolist()) == {snapshot_days * 86_400}


def test_places_are_those_in_the_row_and_labels_see_past_its_end() -> None:
    history = user([0, 1, 2, 3], [VIEW, VIEW, VIEW, BUY], [0, 0, 0, 0], known_until(100, BUYS_WITHIN_10))
    assert after_events(history.moments(TRAIN, 1, 2, 3)) == [(1, [1])]


def test_where_sessions_overlap_a_moment_is_as_late_as_all_that_is_known_by_then() -> None:
    # In the order of the history day 8 stands before days 2 and 5: all three are known on day 8 alone, and the purchase is past.
    history = user([0, 8, 2, 5, 9], [VIEW, VIEW, VIEW, BUY, BUY], [0] * 5, known_until(100, BUYS_WITHIN_10))
    assert after_events(history.moments(TRAIN, 0, 0, 5)) == [(0, [1]), (3, [1]), (4, [0])]


def test_a_refund_beyond_the_purchases_counts_as_nothing_spent() -> None:
    history = user([0, 1, 2], [VIEW, BUY, BUY], [0, 5, -9], known_until(100, SPENDS_WITHIN_10))
    assert after_events(history.moments(TRAIN, 0, 0, 1)) == [(0, [0])]


@settings(max_examples=200, deadline=None)
@given(
    hours=st.lists(st.integers(0, 1500), min_size=1, max_size=12),
    end_hour=st.integers(1, 1600),
    window_hours=st.integers(1, 600),
    is_amount=st.booleans(),
    any_type=st.booleans(),
    data=st.data(),
)
def test_moments_and_labels_equal_a_search_through_all_events(
    hours: list[int], end_hour: int, window_hours: int, is_amount: bool, any_type: bool, data: st.DataObject
) -> None:
    hour = 3_600 * 1_000_000
    types = data.draw(st.lists(st.sampled_from([VIEW, BUY]), min_size=len(hours), max_size=len(hours)))
    values = data.draw(st.lists(st.sampled_from([math.nan, 0.0, 2.5, 7.0]), min_size=len(hours), max_size=len(hours)))
    first = data.draw(st.integers(0, len(hours) - 1))
    end = data.draw(st.integers(first + 1, len(hours)))
    rule = OutcomeRule(None if any_type else frozenset({BUY}), window_hours * hour, is_amount)
    rules = OutcomeRules((rule,), (end_hour * hour,) * 3)
    history = UserOutcomes(np.array(hours) * hour, np.array(types), np.array(values), rules)
    moments = history.moments(TRAIN, 0, first, end)
    expected = set()
    for place in range(first, end):
        latest = max(hours[: place + 1]) * hour
        asked = [] if max(hours[: place + 2]) * hour == latest and place + 1 < len(hours) else [latest]
        snapshot = end_hour * hour - 1
        while snapshot > latest:
            if place + 1 == len(hours) or snapshot < max(hours[: place + 2]) * hour:
                asked.append(snapshot)
            snapshot -= round(min(max(window_hours / 4, 24), 7 * 24) * hour)
        for moment in asked:
            if moment + window_hours * hour >= end_hour * hour:
                continue
            follow = [
                value
                for at, kind, value in zip(hours, types, values, strict=True)
                if moment < at * hour <= moment + window_hours * hour and (any_type or kind == BUY)
            ]
            spent = sum(value for value in follow if not math.isnan(value))
            label = math.log1p(spent) if is_amount else float(bool(follow))
            expected.add((place, (moment - latest) // 1_000_000, round(label, 4)))
    found = [
        (int(place), int(elapsed), round(float(label), 4))
        for place, elapsed, (label,) in zip(moments.place_L, moments.elapsed_seconds_L, moments.label_LO, strict=True)
    ]
    assert found == sorted(expected, key=lambda moment: moment[:2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=12), st.integers(5, 60), st.data())
def test_no_label_changes_with_what_happens_at_or_after_the_splits_end(
    days: list[int], end_day: int, data: st.DataObject
) -> None:
    rules = known_until(end_day, BUYS_WITHIN_10, SPENDS_WITHIN_10)
    known = [day for day in days if day < end_day]
    if not known:
        return
    later = data.draw(st.lists(st.integers(end_day, 90), max_size=4))

    def labels(all_days: list[int]) -> np.ndarray:
        moments = user(all_days, [BUY] * len(all_days), [3.0] * len(all_days), rules).moments(TRAIN, 0, 0, len(known))
        return np.column_stack([moments.place_L, moments.elapsed_seconds_L, moments.label_LO])

    np.testing.assert_array_equal(labels(known), labels(known + later))


@pytest.mark.parametrize("split", [TRAIN, VALIDATION, TEST])
def test_a_user_whose_every_window_is_open_has_no_moment(split: int) -> None:
    moments = user([95, 99], [BUY, BUY], [1, 1], known_until(100, BUYS_WITHIN_10)).moments(split, 0, 0, 2)
    assert moments.place_L.shape == (0,)
    assert moments.label_LO.shape == (0, 1)
