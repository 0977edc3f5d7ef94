"""Repeats collapsed within sessions, against itertools.groupby."""

from __future__ import annotations

import itertools

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms.collapse_kernel import collapse_batches

Event = tuple[str, str]  # item, type
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("ended_at", pa.timestamp("us", tz="UTC")),
        ("num_events", pa.int32()),
        ("num_collapsed", pa.int32()),
        ("item_ids", pa.list_(pa.string())),
        ("event_types", pa.list_(pa.string())),
        ("event_times", pa.list_(pa.timestamp("us", tz="UTC"))),
        ("event_values", pa.list_(pa.float64())),
        ("event_features", pa.list_(pa.list_(pa.float64()))),
    ]
)


def batch_of(sessions: list[list[Event]], with_features: bool = False) -> pa.RecordBatch:
    """Times are 0, 1, 2 ... in each session; every other value is missing."""
    rows = [
        {
            "session_id": f"s{number}",
            "ended_at": len(events) - 1,
            "num_events": len(events),
            "num_collapsed": 0,
            "item_ids": [item for item, _ in events],
            "event_types": [kind for _, kind in events],
            "event_times": list(range(len(events))),
            "event_values": [None if place % 2 else float(place) for place in range(len(events))],
            "event_features": [[float(place), None] for place in range(len(events))] if with_features else None,
        }
        for number, events in enumerate(sessions)
    ]
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def collapsed(*batches: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches(collapse_batches(batches), SCHEMA)


def test_the_first_of_equal_neighbours_is_kept_and_the_others_are_counted() -> None:
    (row,) = collapsed(batch_of([[("a", "view"), ("a", "view"), ("b", "view"), ("a", "view")]])).to_pylist()
    assert row["item_ids"] == ["a", "b", "a"]
    assert [time.microsecond for time in row["event_times"]] == [0, 2, 3]
    assert row["event_values"] == [0.0, 2.0, None]
    assert (row["num_events"], row["num_collapsed"]) == (3, 1)


def test_features_stay_with_their_events_and_null_without_any() -> None:
    sessions = [[("a", "view"), ("a", "view"), ("b", "view")]]
    (row,) = collapsed(batch_of(sessions, with_features=True)).to_pylist()
    assert row["event_features"] == [[0.0, None], [2.0, None]]
    (row,) = collapsed(batch_of(sessions)).to_pylist()
    assert row["event_features"] is None


def test_the_session_still_ends_with_its_last_event_though_it_was_collapsed() -> None:
    (row,) = collapsed(batch_of([[("a", "view"), ("a", "view")]])).to_pylist()
    assert (row["ended_at"].microsecond, row["item_ids"]) == (1, ["a"])


def test_the_same_item_of_another_type_is_no_repeat() -> None:
    (row,) = collapsed(batch_of([[("a", "view"), ("a", "buy"), ("a", "buy")]])).to_pylist()
    assert (row["event_types"], row["num_collapsed"]) == (["view", "buy"], 1)


def test_a_session_that_begins_as_the_one_before_ended_keeps_its_first_event() -> None:
    rows = collapsed(batch_of([[("a", "view")], [("a", "view"), ("a", "view")]])).to_pylist()
    assert [(row["item_ids"], row["num_collapsed"]) for row in rows] == [(["a"], 0), (["a"], 1)]


def test_no_sessions_are_no_sessions() -> None:
    assert collapsed(batch_of([])).num_rows == 0


sessions_drawn = st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("vw")), min_size=1, max_size=8))


@settings(max_examples=200, deadline=None)
@given(sessions_drawn, st.integers(0, 8))
def test_any_sessions_collapse_to_their_runs_however_batched_and_only_once(
    sessions: list[list[Event]], cut: int
) -> None:
    batch = batch_of(sessions)
    found = collapsed(batch)
    assert found.equals(collapsed(batch.slice(0, cut), batch.slice(cut))), "slicing into batches must not show"
    for events, row in zip(sessions, found.to_pylist(), strict=True):
        assert list(zip(row["item_ids"], row["event_types"], strict=True)) == [
            run for run, _ in itertools.groupby(events)
        ]
        assert row["num_events"] == len(row["item_ids"]) == len(row["event_times"]) == len(row["event_values"])
        assert row["num_events"] + row["num_collapsed"] == len(events)
    assert collapsed(*found.to_batches()).equals(found)
