"""The history kernel: what is context, what is target, and that no split sees what it must not."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms.history_kernel import (
    BY_TIME,
    LEAVE_LAST_EVENT_OUT,
    LEAVE_LAST_SESSION_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    HistoryRules,
    Span,
    history_batches,
    split_spans,
    whole_span,
)
from llm_spark.transforms.outcome_kernel import OutcomeRule, OutcomeRules

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


def left_out(split: str, max_tokens: int = 100, burn_in: int = 10) -> HistoryRules:
    return HistoryRules(max_tokens, burn_in, split=split)


def test_a_users_last_session_is_test_and_the_one_before_validation() -> None:
    rows = rows_of([("u", [1, 2]), ("u", [3]), ("u", [4, 5]), ("u", [6, 7])], left_out(LEAVE_LAST_SESSION_OUT))
    assert [(row["split"], row["tokens"], row["first_target"], row["session_starts"]) for row in rows] == [
        (TRAIN, [2, 3, 4], 1, [0, 2]),
        (VALIDATION, [2, 3, 4, 5, 6], 3, [0, 2, 3]),
        (TEST, [2, 3, 4, 5, 6, 7, 8], 5, [0, 2, 3, 5]),
    ]


def test_a_users_last_event_is_test_and_the_one_before_validation_also_within_one_session() -> None:
    rows = rows_of([("u", [1, 2, 3, 4]), ("v", [1, 2]), ("v", [9])], left_out(LEAVE_LAST_EVENT_OUT))
    assert [(row["user_id"], row["split"], row["tokens"], row["first_target"]) for row in rows] == [
        ("u", TRAIN, [2, 3], 1),
        ("u", VALIDATION, [2, 3, 4], 2),
        ("u", TEST, [2, 3, 4, 5], 3),
        ("v", VALIDATION, [6, 7], 1),
        ("v", TEST, [6, 7, 8], 2),
    ]


@pytest.mark.parametrize("split", [LEAVE_LAST_SESSION_OUT, LEAVE_LAST_EVENT_OUT])
def test_a_user_with_fewer_than_three_is_trained_on_whole(split: str) -> None:
    sessions = [("u", [1]), ("u", [5])] if split == LEAVE_LAST_EVENT_OUT else [("u", [1, 2]), ("u", [5])]
    rows = rows_of(sessions, left_out(split))
    assert [(row["split"], len(row["tokens"])) for row in rows] == [(TRAIN, sum(len(times) for _, times in sessions))]


def test_of_overlapping_sessions_only_events_later_than_all_before_are_evaluated() -> None:
    # By their ends: 11, 15 and then 12, 16, 20. The 12 would be predicted with the 15 in its input.
    rows = rows_of([("u", [1, 2]), ("u", [11, 15]), ("u", [12, 16, 20])], rules(10, 30))
    assert [(row["split"], row["event_times"], row["first_target"]) for row in rows] == [
        (TRAIN, [1, 2], 1),
        (VALIDATION, [1, 2, 11, 15], 2),
        (VALIDATION, [1, 2, 11, 15, 12, 16, 20], 5),
    ]


def test_a_single_event_has_nothing_to_predict_from_and_gives_no_row_without_outcomes() -> None:
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


def test_the_whole_history_is_one_row_that_marks_where_sessions_begin() -> None:
    made = history_batches(batches_of([("u", [1, 2, 3]), ("u", [11, 12])], []), whole_span)
    (row,) = [row for batch in made for row in batch.to_pylist()]
    assert (row["tokens"], row["session_starts"], row["first_target"]) == ([2, 3, 4, 5, 6], [0, 3], 5)


def test_features_of_each_rows_events_stand_one_event_after_the_other() -> None:
    steps = pa.Table.from_batches(batches_of([("u", list(range(4))), ("v", [1, 2])], []))
    numbers = [[place, None if place % 2 else 0.5] for place in range(6)]
    steps = steps.append_column("features", pa.array(numbers, pa.list_(pa.float32())))
    chosen = split_spans(rules(100, 200, max_tokens=3, burn_in=1))
    rows = [row for made in history_batches(steps.to_batches(), chosen) for row in made.to_pylist()]
    assert [row["features"] for row in rows] == [
        [0, 0.5, 1, None, 2, 0.5],
        [1, None, 2, 0.5, 3, None],
        [4, 0.5, 5, None],
    ]


def test_rows_carry_the_labels_of_what_they_predict_and_know_what_later_rows_hold() -> None:
    asked = OutcomeRules((OutcomeRule(None, 3_000_000),), (90 * 1_000_000, 0, 0))
    steps = batches_of([("u", [0, 2, 10, 12, 30])], [])
    made = history_batches(steps, split_spans(rules(100, 200, max_tokens=3, burn_in=1)), outcomes=asked)
    rows = [row for batch in made for row in batch.to_pylist()]
    # After 0 s, 2 s and 10 s of the first row, the 12 s and 30 s of the second.
    assert [(row["outcome_places"], row["outcome_labels"]) for row in rows] == [
        ([0, 1, 2], [1, 0, 1]),
        ([1, 2], [0, 0]),
    ]
    assert [row["outcome_elapsed_seconds"] for row in rows] == [[0, 0, 0], [0, 0]]


DAY = 86_400
Moment = tuple[int, float, float]  # split, day, label


def moments_of(sessions: list[Session], max_tokens: int = 100, digits: int = 2) -> dict[str, list[Moment]]:
    """By user what is asked of the outcome "any event within 30 days", training until day 100, validation until 150, all known until 200."""
    asked = OutcomeRules((OutcomeRule(None, 30 * DAY * 1_000_000),), (*(d * DAY * 1_000_000 for d in (100, 150, 200)),))
    chosen = split_spans(rules(100 * DAY, 150 * DAY, max_tokens, burn_in=1))
    found: dict[str, list[Moment]] = {}
    for made in history_batches(batches_of(sessions, []), chosen, outcomes=asked):
        for row in made.to_pylist():
            lists = (row[name] for name in ("outcome_places", "outcome_elapsed_seconds", "outcome_labels"))
            assert row["outcome_places"] or row["first_target"] < len(row["tokens"])
            for place, elapsed, label in zip(*lists, strict=True):
                # Where sessions overlap, the latest event may stand before the row.
                latest = max(*row["event_times"][: place + 1], row["latest_event_time_before"])
                found.setdefault(row["user_id"], []).append(
                    (row["split"], round((latest + elapsed) / DAY, digits), label)
                )
    return found


def test_a_users_first_event_is_asked_about_in_the_split_it_belongs_to() -> None:
    found = moments_of([("once", [DAY]), ("new", [110 * DAY]), ("twice", [DAY]), ("twice", [40 * DAY])])
    # Snapshots lie a moment before days 100, 93, 86, ... of training, 150, 143, ... of validation and 200, 193, ... of the test. What is asked
    # about is closed on day 100, 150, 200.
    of_training = [1.0, *range(2, 70, 7)]
    assert found["once"][:11] == [(TRAIN, day, 0) for day in of_training]
    assert found["new"][:2] == [(VALIDATION, 110, 0), (VALIDATION, 115, 0)]
    # Of its silent days those from day 10 on see day 40; then day 40 itself, and what follows.
    seen = [(TRAIN, day, float(10 <= day < 40)) for day in [1.0, *range(2, 40, 7), 40, *range(44, 70, 7)]]
    assert found["twice"][:12] == seen


def test_a_user_who_is_silent_is_asked_about_in_validation_and_test_too() -> None:
    found = moments_of([("u", [DAY]), ("u", [40 * DAY])])["u"]
    assert [moment for moment in found if moment[0] != TRAIN] == [
        *((VALIDATION, day, 0) for day in (101, 108, 115)),
        *((TEST, day, 0) for day in (151, 158, 165)),
    ]


def test_a_user_who_comes_back_is_asked_about_in_the_silent_days_before() -> None:
    found = moments_of([("u", [DAY]), ("u", [140 * DAY])])["u"]
    assert [moment for moment in found if moment[0] == VALIDATION] == [
        (VALIDATION, 101, 0),
        (VALIDATION, 108, 0),
        (VALIDATION, 115, 1),
    ]


@settings(max_examples=200, deadline=None)
@given(
    days=st.lists(st.tuples(st.sampled_from("uv"), st.integers(0, 199)), min_size=1, max_size=14, unique=True),
    max_tokens=st.integers(2, 5),
)
def test_of_every_user_each_event_and_each_snapshot_from_the_first_event_on_is_asked_about_once(
    days: list[tuple[str, int]], max_tokens: int
) -> None:
    days = sorted(days)
    found = moments_of([(user, [day * DAY]) for user, day in days], max_tokens)
    for user in {user for user, _ in days}:
        mine = [day for one, day in days if one == user]
        expected = []
        for split, begin, end in ((TRAIN, 0, 100), (VALIDATION, 100, 150), (TEST, 150, 200)):
            snapshots = {day for day in range(end, begin, -7) if day > min(mine) and day + 30 <= end}
            # A snapshot lies a moment before its day: it does not know of that day's event, and its window ends before day + 30.
            expected += [(split, day, any(day <= other < day + 30 for other in mine)) for day in snapshots]
            events = [day for day in mine if begin <= day < end and day + 30 < end]
            expected += [(split, day, any(day < other <= day + 30 for other in mine)) for day in events]
        assert sorted(found.get(user, [])) == sorted(
            (split, float(day), float(label)) for split, day, label in expected
        )


@settings(max_examples=100, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from("uvw"), st.lists(st.integers(0, 200), min_size=1, max_size=4)), max_size=12
    ),
    max_tokens=st.integers(2, 8),
)
def test_outcomes_leave_what_is_predicted_as_it_is_and_ask_at_no_moment_twice(
    drawn: list[Session], max_tokens: int
) -> None:
    sessions = sorted(((u, sorted(t * DAY for t in times)) for u, times in drawn), key=lambda s: (s[0], s[1][-1]))
    given_rules = rules(100 * DAY, 150 * DAY, max_tokens, burn_in=1)
    asked = OutcomeRules((OutcomeRule(None, 9 * DAY * 1_000_000),), (*(d * DAY * 1_000_000 for d in (100, 150, 200)),))
    made = history_batches(batches_of(sessions, []), split_spans(given_rules), outcomes=asked)
    rows = [row for batch in made for row in batch.to_pylist()]
    kept = ("user_id", "split", "row_number", "tokens", "values", "session_starts", "event_times", "first_target")
    predicting = [[row[name] for name in kept] for row in rows if row["first_target"] < len(row["tokens"])]
    assert predicting == [[row[name] for name in kept] for row in rows_of(sessions, given_rules)]
    assert all(row["outcome_places"] for row in rows if row["first_target"] == len(row["tokens"]))
    # A snapshot lies a second before a day that may have an event.
    for moments in moments_of(sessions, max_tokens, digits=7).values():
        assert len({day for _, day, _ in moments}) == len(moments)


def test_spans_of_an_empty_split_are_none() -> None:
    import numpy as np

    times = np.array([1, 2]) * 1_000_000
    spans = split_spans(rules(10, 20))(times, np.array([2, 2]) * 1_000_000, np.array([0]))
    assert [span for span in spans if not span.only_asks] == [Span(TRAIN, 0, 2, 1, 0)]


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
        if row["split"] != TRAIN:
            seen = [time_of[token] for token in row["tokens"]]
            assert all(seen[place] >= max(seen[:place]) for place in range(row["first_target"], len(seen))), (
                "no evaluated target has its future in its input"
            )
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


def expected_splits(sessions: list[Session], given_rules: HistoryRules) -> dict[int, int]:
    """Token -> split in which it is predicted, written down from the definitions, one user and one event at a time."""
    expected = {}
    first_token = 2
    for _, group in itertools.groupby(sessions, key=lambda session: session[0]):
        of_user = [times for _, times in group]
        events = [(number, time) for number, times in enumerate(of_user) for time in times]
        for place, (number, time) in enumerate(events):
            if given_rules.split == BY_TIME:
                end = of_user[number][-1] * 1_000_000
                split = (
                    TRAIN
                    if end < given_rules.train_until
                    else VALIDATION
                    if end < given_rules.validation_until
                    else TEST
                )
                begins = {TRAIN: 0, VALIDATION: given_rules.train_until, TEST: given_rules.validation_until}[split]
            else:
                by_session = given_rules.split == LEAVE_LAST_SESSION_OUT
                total, at = (len(of_user), number) if by_session else (len(events), place)
                split = TRAIN if total < 3 or at < total - 2 else VALIDATION if at == total - 2 else TEST
                begins = 0
            latest_before = max((earlier for _, earlier in events[:place]), default=None)
            if latest_before is None:
                continue
            if split == TRAIN or (time >= latest_before and time * 1_000_000 >= begins):
                expected[first_token + place] = split
        first_token += len(events)
    return expected


@settings(max_examples=200, deadline=None)
@given(
    drawn=histories,
    bounds=st.tuples(st.integers(0, 45), st.integers(0, 45)),
    split=st.sampled_from([BY_TIME, LEAVE_LAST_SESSION_OUT, LEAVE_LAST_EVENT_OUT]),
    max_tokens=st.integers(2, 12),
    data=st.data(),
)
def test_each_event_is_predicted_in_the_split_that_the_definitions_give_it_and_once(
    drawn: list[Session], bounds: tuple[int, int], split: str, max_tokens: int, data: st.DataObject
) -> None:
    sessions = sorted(
        ((user, sorted(times)) for user, times in drawn), key=lambda session: (session[0], session[1][-1])
    )
    times = (min(bounds) * 1_000_000, max(bounds) * 1_000_000)
    given_rules = HistoryRules(max_tokens, data.draw(st.integers(1, max_tokens - 1)), *times, split)
    rows = rows_of(sessions, given_rules)
    predicted = [(token, row["split"]) for row in rows for token in row["tokens"][row["first_target"] :]]
    assert sorted(predicted) == sorted(expected_splits(sessions, given_rules).items())
