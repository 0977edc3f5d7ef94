"""Filling missing values against hand-worked histories and a brute-force reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm_spark.transforms.fill_kernel import ValueFill, fill_values

Step = tuple[str, int, int, float | None]  # user, session, time, value
EVERYTHING = 10**6


def filled(steps: list[Step], rule: str, readable: int = EVERYTHING) -> list[float | None]:
    """All steps' values, where nothing at or after the step `readable` may be looked ahead at."""
    values = np.array([math.nan if value is None else value for *_, value in steps], dtype=np.float64)
    times = np.array([time for _, _, time, _ in steps], dtype=np.int64)
    starts = [place == 0 or steps[place - 1][0] != steps[place][0] for place in range(len(steps))]
    sessions = [place == 0 or steps[place - 1][:2] != steps[place][:2] for place in range(len(steps))]
    result = fill_values(values, times, np.array(starts, bool), np.array(sessions, bool), ValueFill.of(rule))
    found = result.at(np.arange(len(steps)), np.full(len(steps), readable))
    return [None if math.isnan(value) else float(value) for value in found]


ONE_SESSION: list[Step] = [
    ("u", 1, 0, None),
    ("u", 1, 10, 2.0),
    ("u", 1, 20, None),
    ("u", 1, 40, None),
    ("u", 1, 50, 10.0),
    ("u", 1, 60, None),
]


@pytest.mark.parametrize("rule", ["keep", "reject", "drop"])
def test_rules_that_fill_nothing_leave_missing_values_missing(rule: str) -> None:
    assert filled(ONE_SESSION, rule) == [None, 2.0, None, None, 10.0, None]


def test_a_constant_takes_the_place_of_every_missing_value() -> None:
    assert filled(ONE_SESSION, "-1.5") == [-1.5, 2.0, -1.5, -1.5, 10.0, -1.5]


def test_forward_takes_the_last_known_value_and_leaves_what_is_before_the_first() -> None:
    assert filled(ONE_SESSION, "forward") == [None, 2.0, 2.0, 2.0, 10.0, 10.0]


def test_forward_goes_on_into_the_users_next_session_but_never_to_another_user() -> None:
    steps: list[Step] = [
        ("u", 1, 0, 5.0),
        ("u", 2, 90, None),
        ("v", 3, 91, None),
        ("v", 3, 92, 7.0),
        ("w", 4, 93, None),
    ]
    assert filled(steps, "forward") == [5.0, 5.0, None, 7.0, None]


def test_interpolation_is_linear_in_time_and_holds_the_last_value_at_the_end() -> None:
    # From 2 at 10 s to 10 at 50 s: a fifth a second.
    assert filled(ONE_SESSION, "interpolate") == [None, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_interpolation_does_not_reach_over_the_pause_between_two_sessions() -> None:
    steps: list[Step] = [("u", 1, 0, 1.0), ("u", 1, 10, None), ("u", 2, 90, None), ("u", 2, 100, 9.0)]
    assert filled(steps, "interpolate") == [1.0, 1.0, 1.0, 9.0]


def test_interpolation_between_events_of_one_instant_holds_the_earlier_value() -> None:
    assert filled([("u", 1, 5, 1.0), ("u", 1, 5, None), ("u", 1, 5, 3.0)], "interpolate") == [1.0, 1.0, 3.0]


def test_interpolation_that_may_not_look_ahead_is_forward() -> None:
    assert filled(ONE_SESSION, "interpolate", readable=4) == [None, 2.0, 2.0, 2.0, 10.0, 10.0]
    assert filled(ONE_SESSION, "interpolate", readable=5) == [None, 2.0, 4.0, 8.0, 10.0, 10.0]


@pytest.mark.parametrize("rule", ["keep", "3", "forward", "interpolate"])
def test_no_steps_are_no_values(rule: str) -> None:
    assert filled([], rule) == []


def brute_force(steps: list[Step], rule: str, readable: int) -> list[float | None]:
    found = []
    for place, (user, session, time, value) in enumerate(steps):
        earlier = [p for p in range(place) if steps[p][0] == user and steps[p][3] is not None]
        here = [p for p in range(len(steps)) if steps[p][:2] == (user, session) and steps[p][3] is not None]
        before, after = [p for p in here if p < place], [p for p in here if p > place]
        if value is not None:
            found.append(value)
        elif rule == "interpolate" and before and after and after[0] < readable:
            (*_, t0, v0), (*_, t1, v1) = steps[before[-1]], steps[after[0]]
            found.append(v0 if t1 == t0 else v0 + (v1 - v0) * (time - t0) / (t1 - t0))
        else:
            found.append(steps[earlier[-1]][3] if earlier else None)
    return found


sessions_drawn = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(-50, 50).map(float)), min_size=1, max_size=6),
    max_size=8,
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(sessions_drawn, st.lists(st.sampled_from("uvw"), min_size=8, max_size=8), st.integers(0, 30), st.data())
def test_any_history_is_filled_as_by_brute_force_and_never_from_what_may_not_be_read(
    sessions: list[list[tuple[int, float | None]]], users: list[str], readable: int, data: st.DataObject
) -> None:
    owned = sorted(zip(users, sessions, strict=False), key=lambda owner: owner[0])
    steps: list[Step] = [
        (user, number, time, value)
        for number, (user, session) in enumerate(owned)
        for time, value in sorted(session, key=lambda step: step[0])
    ]
    rule = data.draw(st.sampled_from(["forward", "interpolate"]))
    found = filled(steps, rule, readable)
    assert found == pytest.approx(brute_force(steps, rule, readable))
    # Change what may not be read: whatever is filled in before it must not notice.
    changed = [(*step[:3], 1e6) if place >= readable else step for place, step in enumerate(steps)]
    assert filled(changed, rule, readable)[:readable] == found[:readable]
