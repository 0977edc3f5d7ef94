"""The sessionization kernel against a brute-force reference and hand-worked days."""

from __future__ import annotations

import itertools
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms.session_kernel import SECOND_BITS, SessionRules, sessionize_batches

Event = tuple[str, str | None, int]  # user, session key, time in seconds
DAY = 50  # seconds of a day in this file


def table_of(events: list[Event], by_key: bool = True, num_hashes: int = 2**31, seed: int = 0) -> pa.Table:
    """What the kernel is given of events in time order (event e7 is the seventh): sorted by sort_key, in no order where that is equal.
    `num_hashes`: how many hashes the owners share."""
    owners = [(user, key if by_key else None) for user, key, _ in events]
    names = sorted(set(owners), key=str)
    hashes = [names.index(owner) % num_hashes - 1 for owner in owners]  # a hash may be negative
    keys = [(hashed << SECOND_BITS) + time for hashed, (_, _, time) in zip(hashes, events, strict=True)]
    table = pa.table(
        {
            "sort_key": pa.array(keys, pa.int64()),
            "user_id": pa.array([user for user, _, _ in events], pa.string()),
            "session_key": pa.array([key for _, key, _ in events], pa.string()),
            "event_time": pa.array([time * 1_000_000 for _, _, time in events], pa.timestamp("us", tz="UTC")),
            "event_id": pa.array([f"e{place:03}" for place in range(len(events))], pa.string()),
            "item_id": pa.array([f"i{place:03}" for place in range(len(events))], pa.string()),
            "event_type": pa.array(["view"] * len(events), pa.string()),
            "value": pa.array([None if place % 3 else float(place) for place in range(len(events))], pa.float64()),
            "local_day": pa.array([time // DAY for _, _, time in events], pa.int32()),
        }
    )
    places = list(range(len(events)))
    random.Random(seed).shuffle(places)
    return table.take(pa.array(sorted(places, key=keys.__getitem__), pa.int64()))


def cut(table: pa.Table, cuts: list[int]) -> list[pa.RecordBatch]:
    edges = [0, *sorted(min(cut, table.num_rows) for cut in cuts), table.num_rows]
    return [
        batch
        for start, end in itertools.pairwise(edges)
        for batch in (
            table.slice(start, end - start).combine_chunks().to_batches()
            or [pa.RecordBatch.from_pylist([], table.schema)]
        )
    ]


def batches_of(events: list[Event], cuts: list[int]) -> list[pa.RecordBatch]:
    return cut(table_of(events), cuts)


def sessions_of(
    events: list[Event], rules: SessionRules, cuts: list[int] | None = None, num_hashes: int = 2**31, seed: int = 0
) -> list[list[str]]:
    """The items of each session, in the order of their first."""
    found = []
    table = table_of(events, rules.by_key, num_hashes, seed)
    for batch in sessionize_batches(cut(table, cuts or []), rules):
        for session in batch.to_pylist():
            assert session["num_events"] == len(session["item_ids"]) == len(session["event_values"])
            assert session["started_at"] == session["event_times"][0]
            assert session["ended_at"] == session["event_times"][-1]
            assert session["first_event_id"] == session["item_ids"][0].replace("i", "e")
            first = int(session["item_ids"][0][1:])
            assert (session["user_id"], session["session_key"]) == events[first][:2]
            found.append(session["item_ids"])
    return sorted(found)


def brute_force(events: list[Event], rules: SessionRules) -> list[list[str]]:
    sessions: list[list[tuple[int, Event]]] = []
    for place, event in enumerate(events):
        if sessions:
            first, last = sessions[-1][0][1], sessions[-1][-1][1]
            same_user = last[0] == event[0]
            if rules.by_key and (last[1], event[1]) != (None, None):
                goes_on = same_user and last[1] == event[1]
            else:
                goes_on = (
                    same_user
                    and event[2] - last[2] <= rules.gap_seconds
                    and event[2] - first[2] <= rules.max_length_seconds
                    and not (rules.by_day and event[2] // DAY != last[2] // DAY)
                )
            if goes_on and len(sessions[-1]) < rules.max_events:
                sessions[-1].append((place, event))
                continue
        sessions.append([(place, event)])
    return [[f"i{place:03}" for place, _ in session] for session in sessions]


def test_features_go_with_their_events_through_batches_and_sessions() -> None:
    events = [("u", None, 0), ("u", None, 5), ("u", None, 100), ("v", None, 0)]
    features = pa.array([[1.0, None], [2.0, 2.5], [3.0, None], [None, 4.0]], pa.list_(pa.float64()))
    table = pa.Table.from_batches(batches_of(events, [])).append_column("features", features)
    pieces = [table.slice(start, 1).combine_chunks().to_batches()[0] for start in range(4)]
    rows = [row for made in sessionize_batches(pieces, by_gap(10)) for row in made.to_pylist()]
    assert [row["event_features"] for row in rows] == [[[1.0, None], [2.0, 2.5]], [[3.0, None]], [[None, 4.0]]]


def by_gap(gap: int, length: int = 10**6, events: int = 10**6) -> SessionRules:
    return SessionRules(gap, length, events, by_key=False)


def test_a_pause_of_exactly_the_gap_stays_in_the_session() -> None:
    assert sessions_of([("u", None, 0), ("u", None, 30), ("u", None, 61)], by_gap(30)) == [["i000", "i001"], ["i002"]]


def test_a_new_user_opens_a_session_even_at_the_same_time() -> None:
    assert sessions_of([("u", None, 5), ("v", None, 5)], by_gap(30)) == [["i000"], ["i001"]]


def test_a_session_is_cut_where_it_exceeds_the_maximum_length() -> None:
    events: list[Event] = [("u", None, time) for time in (0, 10, 20, 30, 40)]
    assert sessions_of(events, by_gap(30, length=20)) == [["i000", "i001", "i002"], ["i003", "i004"]]


def test_a_session_key_from_the_log_rules_over_the_gap() -> None:
    events: list[Event] = [("u", "a", 0), ("u", "a", 9_999), ("u", "b", 9_999), ("u", None, 9_999), ("u", None, 9_999)]
    assert sessions_of(events, SessionRules(30, 60, 100, by_key=True)) == [["i000", "i001"], ["i002"], ["i003", "i004"]]


def test_events_without_a_session_key_go_by_the_gap_where_others_have_one() -> None:
    events: list[Event] = [("u", "a", 0), ("u", None, 0), ("u", None, 31)]
    assert sessions_of(events, SessionRules(30, 60, 100, by_key=True)) == [["i000"], ["i001"], ["i002"]]


def test_a_session_ends_with_the_day_only_where_days_are_cut_and_the_log_gives_no_key() -> None:
    events: list[Event] = [("u", None, 45), ("u", None, 50), ("v", "a", 45), ("v", "a", 50)]
    assert sessions_of(events, by_gap(30)) == [["i000", "i001"], ["i002", "i003"]]
    assert sessions_of(events, SessionRules(30, 10**6, 10**6, by_key=True, by_day=True)) == [
        ["i000"],
        ["i001"],
        ["i002", "i003"],
    ]


@pytest.mark.parametrize(
    ("pause", "sessions"), [(30_000_000, 1), (30_000_001, 2)], ids=["the gap", "a microsecond more"]
)
def test_a_microsecond_beyond_the_gap_opens_a_session(pause: int, sessions: int) -> None:
    (batch,) = batches_of([("u", None, 0), ("u", None, 0)], [])
    times = pa.array([0, pause], pa.timestamp("us", tz="UTC"))
    batch = batch.set_column(batch.schema.get_field_index("event_time"), "event_time", times)
    assert sum(out.num_rows for out in sessionize_batches([batch], by_gap(30))) == sessions


def test_no_events_give_no_sessions() -> None:
    assert sessions_of([], by_gap(30)) == []


def test_only_the_open_session_is_held_back_between_batches() -> None:
    events: list[Event] = [("bot", None, time) for time in range(100)]
    batches = iter(batches_of(events, list(range(10, 100, 10))))
    kernel = sessionize_batches(batches, by_gap(30, events=7))
    first = next(kernel)
    assert first.num_rows == 1
    assert len(list(batches)) == 9, "the first sessions came out before the later batches were read"


logs = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from([None, "a", "b"]), st.integers(0, 200)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    events=logs,
    cuts=st.lists(st.integers(0, 60), max_size=6),
    gap=st.integers(1, 40),
    length=st.integers(1, 120),
    most=st.integers(1, 12),
    by_key=st.booleans(),
    by_day=st.booleans(),
    num_hashes=st.sampled_from([1, 2, 100]),
    seed=st.integers(0, 1000),
)
def test_any_log_cut_into_any_batches_gives_the_sessions_of_the_brute_force(
    events: list[Event],
    cuts: list[int],
    gap: int,
    length: int,
    most: int,
    by_key: bool,
    by_day: bool,
    num_hashes: int,
    seed: int,
) -> None:
    ordered = sorted(
        events, key=lambda event: (event[0], (event[1] is not None, event[1] or "") if by_key else (), event[2])
    )
    rules = SessionRules(gap, length, most, by_key, by_day)
    assert sessions_of(ordered, rules, cuts, num_hashes, seed) == brute_force(ordered, rules)


def test_the_order_within_a_second_is_by_time_and_then_by_id() -> None:
    table = table_of([("u", None, 5)] * 4)
    times = pa.array([5_900_000, 5_100_000, 5_900_000, 5_000_000], pa.timestamp("us", tz="UTC"))
    ids = pa.array(["b", "z", "a", "y"], pa.string())
    table = table.set_column(table.column_names.index("event_time"), "event_time", times)
    table = table.set_column(table.column_names.index("item_id"), "item_id", ids)
    table = table.set_column(table.column_names.index("event_id"), "event_id", ids)
    for cuts in ([], [1], [1, 2, 3]):
        (sessions,) = sessionize_batches(cut(table, cuts), by_gap(30))
        assert sessions["item_ids"].to_pylist() == [["y", "z", "a", "b"]]


def test_users_who_share_a_hash_are_told_apart_and_only_their_open_sessions_are_held_back() -> None:
    events: list[Event] = [(user, None, time) for time in range(0, 1000, 100) for user in "uv"]
    batches = iter(cut(table_of(events, num_hashes=1), [4, 8, 12, 16]))
    made = [out.num_rows for out in sessionize_batches(batches, by_gap(30))]
    # After each batch the sessions of the newest second, which may not be whole, and of both users' one before it are held back.
    assert made == [4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize("unit", ["us", "ns", "ms"])
def test_times_of_any_unit_give_the_same_sessions(unit: str) -> None:
    times = pa.array([0, 30_000_000, 61_000_000], pa.timestamp("us", tz="UTC")).cast(pa.timestamp(unit, tz="UTC"))
    batch = batches_of([("u", None, 0), ("u", None, 30), ("u", None, 61)], [])[0]
    batch = batch.set_column(batch.schema.get_field_index("event_time"), "event_time", times)
    assert [row["num_events"] for out in sessionize_batches([batch], by_gap(30)) for row in out.to_pylist()] == [2, 1]
