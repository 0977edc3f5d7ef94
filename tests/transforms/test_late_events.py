"""Which sessions a late event can change, on hand-worked cases: one user each, a gap of 30 s."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from pyspark.sql import SparkSession

from llm_spark.transforms.late_events import events_within, spans, touched

START = datetime(2025, 3, 31, 23, 59)
GAP = 30

# user: (new events, sessions before as (began, ended), which of them are touched); times in seconds from START.
CASES = {
    "joins two": ([35], [(0, 10), (60, 70), (200, 210)], [(0, 10), (60, 70)]),
    "a gap after the end": ([100], [(0, 10), (60, 70)], [(60, 70)]),
    "more than a gap after the end": ([101], [(0, 10), (60, 70)], []),
    "a gap before the beginning": ([30], [(60, 70)], [(60, 70)]),
    "more than a gap before the beginning": ([29], [(60, 70)], []),
    # A run that was cut twice: what ended more than a gap before is as it was, what follows is cut anew.
    "late in a cut run": ([75], [(0, 20), (30, 50), (60, 80), (90, 110), (300, 310)], [(30, 50), (60, 80), (90, 110)]),
    # Sessions that meet at one instant count as one: which of them has an event of that instant, its id decides.
    "a shared instant": ([75], [(0, 30), (30, 50), (60, 80)], [(0, 30), (30, 50), (60, 80)]),
    "two new events join up": ([40, 65], [(0, 10), (90, 95), (500, 501)], [(0, 10), (90, 95)]),
}


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_new_event_touches_the_sessions_of_its_run_that_it_can_reach(spark: SparkSession) -> None:
    new = [(user, None, at(time)) for user, (times, _, _) in CASES.items() for time in times]
    before = [
        (user, None, f"{span}", at(span[0]), at(span[1]), 2) for user, (_, spans, _) in CASES.items() for span in spans
    ]
    before.append(("nothing new", None, "(0, 10)", at(0), at(10), 2))
    found = touched(
        spark.createDataFrame(new, "user_id string, session_key string, event_time timestamp"),
        spark.createDataFrame(
            before,
            "user_id string, session_key string, session_id string, started_at timestamp, ended_at timestamp, num_events int",
        ),
        GAP,
    ).collect()
    sessions = sorted((row["user_id"], row["session_id"]) for row in found if row["session_id"] is not None)
    assert sessions == sorted((user, f"{span}") for user, (_, _, spans) in CASES.items() for span in spans)
    assert sum(row["session_id"] is None for row in found) == len(new)


def test_a_new_event_of_a_session_key_touches_all_sessions_of_that_key_and_no_other(spark: SparkSession) -> None:
    new = [("u", "k", at(0))]
    before = [("u", key, f"{key} {time}", at(time), at(time), 1) for key in ("k", "l", None) for time in (0, 90_000)]
    found = touched(
        spark.createDataFrame(new, "user_id string, session_key string, event_time timestamp"),
        spark.createDataFrame(
            before,
            "user_id string, session_key string, session_id string, started_at timestamp, ended_at timestamp, num_events int",
        ),
        GAP,
    ).collect()
    assert sorted(str(row["session_id"]) for row in found) == ["None", "k 0", "k 90000"]


def test_the_events_of_a_touched_run_are_found_day_by_day_and_to_the_instant(spark: SparkSession) -> None:
    rows = [("u", None, 0, at(30), at(100), "s", 2), ("u", None, 0, at(70), at(80), None, None)]
    reached = spark.createDataFrame(
        rows,
        "user_id string, session_key string, run int, began_at timestamp, ended_at timestamp, session_id string, num_events int",
    )
    days = spans(reached)
    assert sorted(row["event_date"] for row in days.collect()) == [date(2025, 3, 31), date(2025, 4, 1)]
    events = [
        (user, key, at(time), at(time).date())
        for user, key in (("u", "k"), ("v", None))
        for time in (29, 30, 60, 100, 101)
    ]
    logged = spark.createDataFrame(events, "user_id string, session_key string, event_time timestamp, event_date date")
    times = [row["event_time"] for row in events_within(logged, days, by_key=False).collect()]
    assert sorted(times) == [at(30), at(60), at(100)]
    assert events_within(logged, days, by_key=True).isEmpty()
