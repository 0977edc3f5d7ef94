"""What stands before a row: the outcome head counts the same of a history that is cut into rows as of one that is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.scoring.histories import history_batch, with_moments
from llm_spark.transforms.fill_kernel import ValueFill, fill_values
from llm_spark.transforms.history_kernel import TRAIN, HistoryRules, history_batches, split_spans
from llm_spark.transforms.outcome_kernel import OutcomeRule, OutcomeRules

DAY = 86_400
ENDS = (100, 150, 200)
ASKED = OutcomeRules((OutcomeRule(None, 9 * DAY * 1_000_000),), tuple(day * DAY * 1_000_000 for day in ENDS))
Event = tuple[int, float | None]  # day, value

sessions_of_users = st.lists(
    st.tuples(
        st.sampled_from("uvw"),
        st.lists(
            st.tuples(st.integers(0, 199), st.one_of(st.none(), st.sampled_from([2.5, -1.0, 7.0]))),
            min_size=1,
            max_size=8,
        ),
    ),
    min_size=1,
    max_size=14,
)


def in_order(drawn: list[tuple[str, list[Event]]]) -> list[tuple[str, list[Event]]]:
    sessions = [(user, sorted(events, key=lambda event: event[0])) for user, events in drawn]
    return sorted(sessions, key=lambda session: (session[0], session[1][-1][0]))


def rows_of(sessions: list[tuple[str, list[Event]]], rule: str, max_tokens: int) -> pa.Table:
    """All events carry a token of their own."""
    steps = [
        {
            "user_id": user,
            "session_id": f"s{number}",
            "session_ended_at": events[-1][0] * DAY * 1_000_000,
            "event_time": day * DAY * 1_000_000,
            "event_type": 2,
            "value": value,
        }
        for number, (user, events) in enumerate(sessions)
        for day, value in events
    ]
    schema = pa.schema(
        [
            ("user_id", pa.string()),
            ("session_id", pa.string()),
            ("session_ended_at", pa.timestamp("us", tz="UTC")),
            ("event_time", pa.timestamp("us", tz="UTC")),
            ("event_type", pa.int32()),
            ("value", pa.float32()),
        ]
    )
    table = pa.Table.from_pylist(steps, schema)
    table = table.append_column("token", pa.array(np.arange(2, 2 + len(steps)), pa.int32()))
    micros = [day * DAY * 1_000_000 for day in ENDS]
    choose = split_spans(HistoryRules(max_tokens, min(3, max_tokens - 1), micros[0], micros[1]))
    made = history_batches(table.to_batches(), choose, fill=ValueFill.of(rule), outcomes=ASKED)
    batches = list(made)
    return pa.Table.from_batches(batches) if batches else pa.table({})


def accounts_of(rows: pa.Table) -> dict[tuple[int, int, int], list[float]]:
    """(split, token, seconds since the latest event) of each moment -> sessions, seconds from the first event to the latest, spent."""
    found = {}
    for batch in rows.combine_chunks().to_batches():
        histories = with_moments(batch, history_batch(batch), 1)
        moments = histories.moments
        numbers_L3 = histories.account(moments.place_L).double().expm1()
        row_L = np.searchsorted(histories.row_offsets.numpy(), moments.place_L.numpy(), side="right") - 1
        for row, place, elapsed, numbers in zip(
            row_L, moments.place_L.tolist(), moments.elapsed_L.tolist(), numbers_L3.tolist(), strict=True
        ):
            key = batch["split"][int(row)].as_py(), int(histories.tokens_N[place]), int(elapsed)
            assert key not in found
            found[key] = numbers
    return found


@settings(max_examples=200, deadline=None)
@given(drawn=sessions_of_users, rule=st.sampled_from(["keep", "3.5", "forward"]), max_tokens=st.integers(2, 12))
def test_every_moment_of_a_cut_history_counts_what_the_whole_history_counts(
    drawn: list[tuple[str, list[Event]]], rule: str, max_tokens: int
) -> None:
    sessions = in_order(drawn)
    cut, whole = (accounts_of(rows_of(sessions, rule, size)) for size in (max_tokens, 10_000))
    assert cut.keys() == whole.keys()
    for key, numbers in cut.items():
        assert numbers == pytest.approx(whole[key], rel=1e-4, abs=1e-4)


def test_a_row_of_eight_events_knows_of_the_visits_before_it() -> None:
    rows = rows_of([("u", [(place, 2.0)]) for place in range(60)], "keep", 8).to_pylist()
    assert len(rows[-1]["tokens"]) == 8
    *_, last_of_training = (row for row in rows if row["split"] == TRAIN)
    begins = last_of_training["event_times"][0] // DAY
    assert begins == 52
    assert last_of_training["num_sessions_before"] == begins
    assert last_of_training["value_sum_before"] == 2.0 * begins
    assert last_of_training["first_event_time"] == 0
    assert last_of_training["latest_event_time_before"] == (begins - 1) * DAY


def test_a_row_that_begins_within_a_session_counts_it_once() -> None:
    rows = rows_of([("u", [(1, 1.0)]), ("u", [(day, 1.0) for day in range(2, 22)])], "keep", 8).to_pylist()
    assert [row["num_sessions_before"] for row in rows if row["split"] == TRAIN] == [0, 1, 1, 1]
    assert accounts_of(rows_of([("u", [(day, 1.0) for day in range(22)])], "keep", 8))[TRAIN, 23, 0][0] == (
        pytest.approx(1)
    )


@settings(max_examples=200, deadline=None)
@given(drawn=sessions_of_users, max_tokens=st.integers(2, 8))
def test_what_was_spent_before_a_row_holds_no_value_that_the_row_must_not_know(
    drawn: list[tuple[str, list[Event]]], max_tokens: int
) -> None:
    sessions = in_order(drawn)
    events = [(number, user, day, value) for number, (user, of) in enumerate(sessions) for day, value in of]
    values = np.array([np.nan if value is None else value for *_, value in events])
    begins_session = np.array([place == 0 or events[place - 1][0] != e[0] for place, e in enumerate(events)])
    begins_user = np.array([place == 0 or events[place - 1][1] != e[1] for place, e in enumerate(events)])
    filled = fill_values(
        values, np.array([day for _, _, day, _ in events]), begins_user, begins_session, ValueFill.of("interpolate")
    )
    for row in rows_of(sessions, "interpolate", max_tokens).to_pylist():
        start = row["tokens"][0] - 2
        user_start = next(place for place, event in enumerate(events) if event[1] == row["user_id"])
        known = start + (len(row["tokens"]) if row["split"] == TRAIN else row["first_target"])
        before = np.arange(user_start, start)
        expected = np.nansum(filled.at(before, np.full(len(before), known)).astype(np.float32))
        assert row["value_sum_before"] == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
