"""Missing values in a user's history: filled for the model without letting a row know what it must not."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms.fill_kernel import ValueFill
from llm_spark.transforms.history_kernel import (
    TEST,
    TRAIN,
    VALIDATION,
    HistoryRules,
    Span,
    SpanChooser,
    history_batches,
    split_spans,
    whole_span,
)

Session = list[tuple[int, float | None]]  # (time in seconds, value)
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("session_ended_at", pa.timestamp("us", tz="UTC")),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("token", pa.int32()),
        ("event_type", pa.int32()),
        ("value", pa.float32()),
    ]
)


def rows_of(sessions: list[Session], choose: SpanChooser, rule: str) -> list[dict]:
    """Rows of one user's history; tokens number its steps from 2."""
    steps = [(number, session[-1][0], *step) for number, session in enumerate(sessions) for step in session]
    rows = [
        {
            "user_id": "u",
            "session_id": f"s{number}",
            "session_ended_at": end * 1_000_000,
            "event_time": time * 1_000_000,
            "token": 2 + place,
            "event_type": 2,
            "value": value,
        }
        for place, (number, end, time, value) in enumerate(steps)
    ]
    batches = pa.Table.from_pylist(rows, SCHEMA).to_batches()
    return [row for made in history_batches(batches, choose, fill=ValueFill.of(rule)) for row in made.to_pylist()]


def by_time(train_until: int, validation_until: int, max_tokens: int = 100, burn_in: int = 10) -> SpanChooser:
    return split_spans(HistoryRules(max_tokens, burn_in, train_until * 1_000_000, validation_until * 1_000_000))


THREE_SESSIONS: list[Session] = [
    [(0, 1.0), (1, None), (2, 3.0)],
    [(11, None), (12, 7.0), (13, None), (14, 9.0)],
    [(21, None), (22, 5.0)],
]


def test_training_rows_interpolate_and_evaluated_rows_only_before_their_first_target() -> None:
    rows = rows_of(THREE_SESSIONS, by_time(10, 20), "interpolate")
    assert [(row["split"], row["first_target"], row["values"]) for row in rows] == [
        (TRAIN, 1, [1.0, 2.0, 3.0]),
        # The step at 13 s is read when the one at 14 s is predicted: 7 is held there, where the line would be at 8.
        (VALIDATION, 3, [1.0, 2.0, 3.0, 3.0, 7.0, 7.0, 9.0]),
        (TEST, 7, [1.0, 2.0, 3.0, 3.0, 7.0, 8.0, 9.0, 9.0, 5.0]),
    ]


def test_scored_histories_are_context_throughout_and_are_interpolated() -> None:
    (row,) = rows_of(THREE_SESSIONS, whole_span, "interpolate")
    assert row["values"] == [1.0, 2.0, 3.0, 3.0, 7.0, 8.0, 9.0, 9.0, 5.0]


def test_a_constant_and_the_last_known_value_are_filled_into_every_row() -> None:
    assert rows_of(THREE_SESSIONS, by_time(10, 20), "0.5")[0]["values"] == [1.0, 0.5, 3.0]
    assert rows_of(THREE_SESSIONS, by_time(10, 20), "forward")[2]["values"] == [1, 1, 3, 3, 7, 7, 9, 9, 5]


def test_a_row_that_begins_in_the_middle_of_a_history_still_knows_the_last_value() -> None:
    session: Session = [(0, 4.0), *[(time, None) for time in range(1, 9)]]
    rows = rows_of([session], by_time(100, 200, max_tokens=4, burn_in=2), "forward")
    assert [row["values"] for row in rows] == [[4.0] * 4] * 4


def test_a_training_row_that_ends_within_a_session_does_not_look_past_its_end() -> None:
    def leave_last_event_out(*history: object) -> list[Span]:
        return [Span(TRAIN, 0, 3, 1, 0), Span(TEST, 0, 4, 3, 2)]

    rows = rows_of([[(0, 1.0), (1, None), (2, None), (3, 4.0)]], leave_last_event_out, "interpolate")
    assert [row["values"] for row in rows] == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 4.0]]


drawn_sessions = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9).map(float)), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(
    drawn_sessions,
    st.tuples(st.integers(0, 50), st.integers(0, 50)),
    st.integers(2, 8),
    st.sampled_from(["forward", "interpolate"]),
    st.data(),
)
def test_no_value_that_a_position_is_predicted_from_changes_with_the_future(
    drawn: list[Session], bounds: tuple[int, int], max_tokens: int, rule: str, data: st.DataObject
) -> None:
    sessions = [
        sorted(((10 * number + time, value) for time, value in session), key=lambda step: step[0])
        for number, session in enumerate(drawn)
    ]
    choose = by_time(min(bounds), max(bounds), max_tokens, data.draw(st.integers(1, max_tokens - 1)))
    num_steps = sum(map(len, sessions))
    step = data.draw(st.integers(0, num_steps - 1))
    time = [time for session in sessions for time, _ in session][step]
    place, changed = 0, []
    for session in sessions:
        changed.append([(at, 1e6 if place + offset >= step else value) for offset, (at, value) in enumerate(session)])
        place += len(session)
    for before, after in zip(rows_of(sessions, choose, rule), rows_of(changed, choose, rule), strict=True):
        # Tokens number the steps; what is read when `step` is predicted are the steps before it.
        earlier = sum(token < 2 + step for token in before["tokens"])
        if before["split"] == TRAIN:
            if time >= min(bounds):
                assert before["values"] == after["values"], "training has seen what comes after its end"
            continue
        if earlier >= before["first_target"]:
            assert before["values"][:earlier] == after["values"][:earlier]


@pytest.mark.parametrize("rule", ["keep", "reject"])
def test_without_a_filling_rule_missing_values_stay_null(rule: str) -> None:
    assert rows_of(THREE_SESSIONS, by_time(10, 20), rule)[0]["values"] == [1.0, None, 3.0]
