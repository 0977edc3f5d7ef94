"""What changed between two states of the sessions, and of whom what was kept is still of use."""

from __future__ import annotations

from datetime import datetime, timedelta

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.schemas import USER_MEMORY
from llm_spark.transforms.session_changes import kept_steps, session_changes, touched_users
from tests.session_rows import session_row, sessions_frame

START = datetime(2026, 1, 1)
Stay = tuple[str, str, int, str]
"""Session, user, hour of its first event, items (one letter each, a minute apart)."""


def at(hour: int, minute: int = 0) -> datetime:
    return START + timedelta(hours=hour, minutes=minute)


def sessions(spark: SparkSession, *stays: Stay) -> DataFrame:
    rows = []
    for session, user, hour, items in stays:
        times = [at(hour, minute) for minute in range(len(items))]
        rows.append(session_row(session, user, times, list(items), ["view"] * len(items), [None] * len(items)))
    return sessions_frame(spark, rows)


def states(spark: SparkSession, *kept: tuple[str, str | None, list[Stay], bool]) -> DataFrame:
    """Rows of user_memory: user, the last session of his past and its hour ("p@3"), the sessions of the window, whether the last was open."""
    rows = []
    for user, past, window, is_open in kept:
        named = dict.fromkeys(USER_MEMORY.schema.names)
        lengths = [len(items) for *_, items in window]
        named |= {
            "user_id": user,
            "tokens": [2 + ord(item) - ord("a") for *_, items in window for item in items],
            "event_types": [2] * sum(lengths),
            "values": [None] * sum(lengths),
            "features": [float(i) for i in range(2 * sum(lengths))],
            "event_times": [
                int((at(hour, minute) - datetime(1970, 1, 1)).total_seconds())
                for _, _, hour, items in window
                for minute in range(len(items))
            ],
            "session_starts": [sum(lengths[:place]) for place in range(len(lengths))],
            "session_ids": [session for session, *_ in window],
            "sessions_ended_at": [at(hour, len(items) - 1) for _, _, hour, items in window],
            "session_open": is_open,
        }
        if past:
            session, hour = past.split("@")
            named["past"] = {"num_sessions": 1, "num_events": 1, "ended_at": at(int(hour)), "session_id": session}
        rows.append(tuple(named[name] for name in USER_MEMORY.schema.names))
    return spark.createDataFrame(rows, USER_MEMORY.schema)


def test_sessions_that_came_went_or_changed_are_told_apart_from_those_written_again(spark: SparkSession) -> None:
    before = sessions(spark, ("same", "u", 1, "ab"), ("grown", "u", 3, "a"), ("gone", "v", 1, "abc"))
    after = sessions(spark, ("grown", "u", 3, "ab"), ("same", "u", 1, "ab"), ("new", "w", 1, "c"))
    found = {
        row["session_id"]: (row["user_id"], row["is_there"], row["num_events_before"], row["item_ids"])
        for row in session_changes(before, after).collect()
    }
    assert found == {
        "grown": ("u", True, 1, ["a", "b"]),
        "gone": ("v", False, 3, None),
        "new": ("w", True, None, ["c"]),
    }


def test_a_value_that_is_missing_at_another_place_is_a_change(spark: SparkSession) -> None:
    def session(*values: float | None) -> DataFrame:
        times = [at(1, minute) for minute in range(len(values))]
        return sessions_frame(spark, [session_row("s", "u", times, ["a"] * 3, ["view"] * 3, values)])

    assert session_changes(session(1.0, None, 5.0), session(1.0, 5.0, None)).count() == 1
    assert session_changes(session(1.0, None, 5.0), session(1.0, None, 5.0)).count() == 0
    features = F.array(F.array(F.lit(1.0), F.lit(None)), F.array(F.lit(None), F.lit(2.0)))
    others = F.array(F.array(F.lit(1.0), F.lit(2.0)), F.array(F.lit(None), F.lit(None)).cast("array<double>"))
    before, after = (session(1.0).withColumn("event_features", column) for column in (features, others))
    assert session_changes(before, after).count() == 1


def test_what_was_kept_is_of_use_where_all_that_changed_comes_after_all_that_stays(spark: SparkSession) -> None:
    window = {user: [(f"{user}1", user, 5, "ab"), (f"{user}2", user, 9, "abc")] for user in "abcdefgh"}
    kept = states(spark, *((user, "p@2", window[user], user == "h") for user in window), ("i", None, [], False))
    stays = {user: tuple(window[user]) for user in window}
    before = sessions(spark, *(stay for user in window for stay in stays[user]), ("p", "e", 2, "a"))
    after = sessions(
        spark,
        *stays["a"], ("a3", "a", 12, "c"),  # a: a session more
        stays["b"][0], ("b2", "b", 9, "abcd"),  # b: the last one goes on
        *stays["c"], ("c3", "c", 1, "c"),  # c: one that belongs into the past
        ("d1", "d", 5, "abcd"), stays["d"][1],  # d: one before the last one is longer
        *stays["e"], ("p", "e", 2, "aa"),  # e: the past itself is another one
        ("f1", "f", 5, "abcdefghi"),  # f: two became one, all in the window
        stays["g"][0],  # g: the last one is gone
        *stays["h"],  # h: nothing new
        ("j1", "j", 4, "a"),  # j: nothing was kept of him
    )  # fmt: skip
    touched = touched_users(session_changes(before, after), kept, F.col("session_open")).collect()
    assert {row["user_id"]: row["is_replayed"] for row in touched} == {
        "a": False,
        "b": False,
        "c": True,
        "d": True,
        "e": True,
        "f": False,
        "g": True,
        "h": False,  # his last session was open, and the night closes it
        "j": False,
    }
    assert {row["user_id"] for row in touched if not row["is_kept"]} == {"j"}
    assert {row["user_id"]: sorted(row["gone_ids"]) for row in touched if row["gone_ids"]} == {
        "b": ["b2"],
        "d": ["d1"],
        "e": ["p"],
        "f": ["f1", "f2"],
        "g": ["g2"],
    }
    closing = touched_users(session_changes(after, after), kept, F.lit(False))
    assert closing.count() == 0


def test_the_steps_that_were_kept_are_those_of_the_sessions_that_stay(spark: SparkSession) -> None:
    kept = states(spark, ("u", None, [("s1", "u", 5, "ab"), ("s2", "u", 7, "c"), ("s3", "u", 9, "de")], False))
    steps = kept_steps(kept.withColumn("gone_ids", F.array(F.lit("s2"))), 2).orderBy("session_ended_at", "place")
    assert [
        (row["session_id"], row["session_ended_at"], row["place"], row["event_time"], row["token"], row["features"])
        for row in steps.collect()
    ] == [
        ("s1", at(5, 1), 0, at(5, 0), 2, [0.0, 1.0]),
        ("s1", at(5, 1), 1, at(5, 1), 3, [2.0, 3.0]),
        ("s3", at(9, 1), 0, at(9, 0), 5, [6.0, 7.0]),
        ("s3", at(9, 1), 1, at(9, 1), 6, [8.0, 9.0]),
    ]
