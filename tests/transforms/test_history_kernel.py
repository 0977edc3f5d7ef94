"""The history kernel: what is context, what is target, and that no split sees what it must not."""

from __future__ import annotations

import itertools

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms.history_kernel import (
    TEST,
    TRAIN,
    VALIDATION,
    HistoryRules,
    Span,
    history_batches,
    latest_spans,
    split_spans,
)

Session = tuple[str, list[int]]  # user, event times in seconds


def batches_of(sessions: list[Session], cuts: list[int]) -> list[pa.RecordBatch]:
    steps = [(user, number, times[-1], time) for number, (user, times) in enumerate(sessions) for time in times]
    schema = pa.schema(
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
    rows = [
        {
            "user_id": user,
            "session_id": f"s{number}",
            "session_ended_at": end * 1_000_000,
            "event_time": time * 1_000_000,
            "token": 2 + place,
            "event_type": 2,
            "value": None if place % 2 else 0.5,
        }
        for place, (user, number, end, time) in enumerate(steps)
    ]
    table = pa.Table.from_pylist(rows, schema)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    slices = (table.slice(start, end - start) for start, end in itertools.pairwise(edges))
    return [batch for piece in slices for batch in piece.combine_chunks().to_batches()]


def rows_of(sessions: list[Session], rules: HistoryRules, cuts: list[int] | None = None) -> list[dict]:
    made = history_batches(batches_of(sessions, cuts or []), split_spans(rules), rows_per_batch=2)
    return [row for batch in made for row in batch.to_pylist()]


def rules(train_until: int, validation_until: int, max_tokens: int = 100, burn_in: int = 10) -> HistoryRules:
    return HistoryRules(max_tokens, burn_in, train_until * 1_000_000, validation_until * 1_000_000)


def test_each_split_gets_its_sessions_as_targets_and_the_earlier_ones_as_context() -> None:
    rows = rows_of([("u", [1, 2]), ("u", [11, 12]), ("u", [21, 22])], rules(10, 20))
    assert [(row["split"], row["tokens"], row["first_target"], row["session_starts"]) for row in rows] == [
        (TRAIN, [2, 3], 1, [0]),
        (VALIDATION, [2, 3, 4, 5], 2, [0, 2]),
        (TEST, [2, 3, 4, 5, 6, 7], 4, [0, 2, 4]),
    ]
    assert rows[2]["event_times"] == [1, 2, 11, 12, 21, 22]
    assert rows[2]["values"] == [0.5, None, 0.5, None, 0.5, None]


def test_a_session_over_the_boundary_is_kept_out_of_training_and_its_early_part_is_no_target() -> None:
    rows = rows_of([("u", [1, 2]), ("u", [9, 11, 12])], rules(10, 20))
    assert [(row["split"], row["tokens"], row["first_target"]) for row in rows] == [
        (TRAIN, [2, 3], 1),
        (VALIDATION, [2, 3, 4, 5, 6], 3),
    ]


def test_a_single_event_has_nothing_to_predict_from_and_gives_no_row() -> None:
    assert rows_of([("u", [1])], rules(10, 20)) == []


def test_the_first_event_of_a_user_in_the_test_window_is_no_target() -> None:
    rows = rows_of([("u", [21, 22])], rules(10, 20))
    assert [(row["split"], row["first_target"]) for row in rows] == [(TEST, 1)]


def test_a_long_history_is_cut_into_rows_that_begin_with_a_burn_in() -> None:
    rows = rows_of([("u", list(range(9)))], rules(100, 200, max_tokens=4, burn_in=2))
    assert [(row["tokens"], row["first_target"]) for row in rows] == [
        ([2, 3, 4, 5], 1),
        ([4, 5, 6, 7], 2),
        ([6, 7, 8, 9], 2),
        ([7, 8, 9, 10], 3),
    ]


def test_the_latest_history_keeps_the_newest_tokens_and_marks_where_sessions_begin() -> None:
    made = history_batches(batches_of([("u", [1, 2, 3]), ("u", [11, 12])], []), latest_spans(4))
    (row,) = [row for batch in made for row in batch.to_pylist()]
    assert (row["tokens"], row["session_starts"]) == ([3, 4, 5, 6], [0, 2])


def test_spans_of_an_empty_split_are_none() -> None:
    import numpy as np

    times = np.array([1, 2]) * 1_000_000
    assert split_spans(rules(10, 20))(times, np.array([2, 2]) * 1_000_000, np.array([0])) == [Span(TRAIN, 0, 2, 1)]


histories = st.lists(
    st.tuples(st.sampled_from("uvw"), st.lists(st.integers(0, 40), min_size=1, max_size=6)), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(
    drawn=histories,
    cuts=st.lists(st.integers(0, 60), max_size=5),
    bounds=st.tuples(st.integers(0, 45), st.integers(0, 45)),
    max_tokens=st.integers(2, 12),
    data=st.data(),
)
def test_every_position_is_a_target_at_most_once_and_no_row_sees_its_future(
    drawn: list[Session], cuts: list[int], bounds: tuple[int, int], max_tokens: int, data: st.DataObject
) -> None:
    sessions = sorted(
        ((user, sorted(times)) for user, times in drawn), key=lambda session: (session[0], session[1][-1])
    )
    given_rules = rules(min(bounds), max(bounds), max_tokens, data.draw(st.integers(1, max_tokens - 1)))
    rows = rows_of(sessions, given_rules, cuts)
    assert rows == rows_of(sessions, given_rules), "cutting into batches must not show"
    time_of = {2 + place: time for place, time in enumerate(time for _, times in sessions for time in times)}
    targets = [token for row in rows for token in row["tokens"][row["first_target"] :]]
    assert len(targets) == len(set(targets))
    for row in rows:
        assert 2 <= len(row["tokens"]) <= max_tokens
        assert row["tokens"] == list(range(row["tokens"][0], row["tokens"][0] + len(row["tokens"])))
        assert row["session_starts"][0] == 0
        assert 1 <= row["first_target"] < len(row["tokens"])
        target_times = [time_of[token] for token in row["tokens"][row["first_target"] :]]
        if row["split"] == TRAIN:
            assert max(time_of[token] for token in row["tokens"]) < min(bounds)
        else:
            assert min(target_times) >= (min(bounds) if row["split"] == VALIDATION else max(bounds))
    # Every training session's positions but a history's first are targets.
    trained = {token for row in rows if row["split"] == TRAIN for token in row["tokens"][row["first_target"] :]}
    token, expected, seen_users = 2, set(), set()
    for user, times in sessions:
        for _ in times:
            if times[-1] < min(bounds) and user in seen_users:
                expected.add(token)
            seen_users.add(user)
            token += 1
    assert trained == expected
