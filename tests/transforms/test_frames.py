"""Sessions, vocabulary and sequences as DataFrames: shuffles and joins around the kernels."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import SequencesConfig, SessionizeConfig
from llm_spark.transforms.as_of import sessions_before
from llm_spark.transforms.sequences import sequences, tokenized_steps, whole_histories
from llm_spark.transforms.sessions import sessionize
from llm_spark.transforms.splits import SplitTimes, split_time_quantiles
from llm_spark.transforms.vocabulary import item_counts, new_tokens

START = datetime(2025, 1, 1)


def events(spark: SparkSession, rows: list[tuple[str, int, str]]) -> DataFrame:
    """Rows of (user, minute, item)."""
    full = [
        (f"e{place:03}", user, item, "view", START + timedelta(minutes=minute), float(minute), None)
        for place, (user, minute, item) in enumerate(rows)
    ]
    return spark.createDataFrame(
        full,
        "event_id string, user_id string, item_id string, event_type string, event_time timestamp, value double, session_key string",
    )


TWO_USERS = [
    ("u", 0, "a"),
    ("u", 10, "b"),
    ("v", 5, "a"),
    ("u", 41, "c"),
    ("v", 6, "b"),
    ("u", 100, "a"),
    ("u", 101, "a"),
]


@pytest.mark.parametrize("num_partitions", [1, 3])
def test_events_in_any_order_and_partitioning_give_the_same_sessions(spark: SparkSession, num_partitions: int) -> None:
    shuffled = events(spark, TWO_USERS).orderBy("item_id").repartition(num_partitions)
    rows = sessionize(shuffled, SessionizeConfig(gap_seconds=1800), by_key=False).collect()
    found = sorted((row["user_id"], row["started_at"].minute, row["item_ids"], row["event_values"]) for row in rows)
    assert found == [
        ("u", 0, ["a", "b"], [0.0, 10.0]),
        ("u", 40, ["a", "a"], [100.0, 101.0]),
        ("u", 41, ["c"], [41.0]),
        ("v", 5, ["a", "b"], [5.0, 6.0]),
    ]
    assert len({row["session_id"] for row in rows}) == 4


@pytest.mark.parametrize("by_key", [False, True])
def test_times_that_no_second_of_a_sort_key_holds_are_in_order_all_the_same(spark: SparkSession, by_key: bool) -> None:
    days = [
        -20_000,
        -15_000,
        0,
        100,
        50_000,
        80_000,
    ]  # from the epoch: 1915 to 2189; a sort key has the seconds from 1970 to 2106
    users = ["u", "v", "w"]
    rows = spark.createDataFrame(
        [(user, day) for day in (3, 0, 5, 1, 4, 2) for user in users], "user_id string, day int"
    )
    of_days = F.element_at(F.array(*map(F.lit, days)), F.col("day") + 1)
    log = rows.select(
        F.concat("user_id", F.col("day").cast("string")).alias("event_id"),
        "user_id",
        F.col("day").cast("string").alias("item_id"),
        F.lit("view").alias("event_type"),
        F.timestamp_seconds(of_days.cast("bigint") * 86_400).alias("event_time"),
        F.lit(None).cast("double").alias("value"),
        F.lit("key").alias("session_key"),
    )
    settings = SessionizeConfig(gap_seconds=10**9, max_length_seconds=10**9)
    sessions = sessionize(log.repartition(2), settings, by_key).select("user_id", "item_ids").collect()
    in_time = ["0", "1", "2", "3", "4", "5"]
    pieces = [in_time] if by_key else [["0", "1"], ["2", "3"], ["4"], ["5"]]
    assert sorted(sessions) == sorted((user, piece) for user in users for piece in pieces)


def test_sessions_before_a_night_are_those_of_the_events_before_it(spark: SparkSession) -> None:
    settings = SessionizeConfig(gap_seconds=1800)

    def rows(sessions: DataFrame) -> list[tuple]:
        return sorted(repr(tuple(row)) for row in sessions.collect())

    logged = events(spark, TWO_USERS)
    all_sessions = sessionize(logged, settings, by_key=False).localCheckpoint()
    # Before all, on an event (which is after it then), between the events of a session, between sessions, after all.
    for minute in (0, 6, 5.5, 60, 101, 200):
        night = START + timedelta(minutes=minute)
        known_then = sessionize(logged.where(F.col("event_time") < F.lit(night)), settings, by_key=False)
        assert rows(sessions_before(all_sessions, night)) == rows(known_then), minute


def test_a_late_event_leaves_the_ids_of_the_other_sessions_alone(spark: SparkSession) -> None:
    def ids(rows: list[tuple[str, int, str]]) -> dict[tuple[str, datetime], str]:
        made = sessionize(events(spark, rows), SessionizeConfig(), by_key=False).collect()
        return {(row["user_id"], row["started_at"]): row["session_id"] for row in made}

    before, after = ids(TWO_USERS), ids([*TWO_USERS, ("u", 102, "z")])
    assert before == after


def sessions_of(spark: SparkSession) -> DataFrame:
    return sessionize(events(spark, TWO_USERS), SessionizeConfig(), by_key=False)


def test_tokens_follow_frequency_and_are_appended_never_reused(spark: SparkSession) -> None:
    counts = item_counts(sessions_of(spark))
    none = spark.createDataFrame([], "token int, item_id string")
    first = new_tokens(counts, none, "item_id", min_count=2, max_tokens=0)
    assert {row["item_id"]: row["token"] for row in first.collect()} == {"a": 2, "b": 3}
    known = spark.createDataFrame([(2, "b"), (9, "z")], "token int, item_id string")
    more = new_tokens(counts, known, "item_id", min_count=1, max_tokens=0)
    assert {row["item_id"]: row["token"] for row in more.collect()} == {"a": 10, "c": 11}
    capped = new_tokens(counts, known, "item_id", min_count=1, max_tokens=3)
    assert {row["item_id"]: row["token"] for row in capped.collect()} == {"a": 10}


def steps_of(spark: SparkSession) -> DataFrame:
    vocabulary = spark.createDataFrame([(2, "a"), (3, "b")], "token int, item_id string")
    types = spark.createDataFrame([(2, "view")], "token int, event_type string")
    return tokenized_steps(sessions_of(spark), vocabulary, types)


def test_sequences_are_cut_by_time_and_unknown_items_stay_unknown(spark: SparkSession) -> None:
    times = SplitTimes(START + timedelta(minutes=40), START + timedelta(minutes=60))
    rows = sequences(steps_of(spark), SequencesConfig(), times).collect()
    found = sorted((row["user_id"], row["split"], row["tokens"], row["first_target"]) for row in rows)
    assert found == [
        ("u", "test", [2, 3, 1, 2, 2], 3),
        ("u", "train", [2, 3], 1),
        ("u", "validation", [2, 3, 1], 2),
        ("v", "train", [2, 3], 1),
    ]
    assert len({row["sequence_id"] for row in rows}) == 4


def test_the_whole_history_of_each_user_names_its_sessions_in_the_order_of_their_ends(spark: SparkSession) -> None:
    steps = steps_of(spark)
    rows = {row["user_id"]: row for row in whole_histories(steps).collect()}
    assert {user: (row["tokens"], row["session_starts"]) for user, row in rows.items()} == {
        "u": ([2, 3, 1, 2, 2], [0, 2, 3]),
        "v": ([2, 3], [0]),
    }
    ends = {row["session_id"]: row["session_ended_at"] for row in steps.collect()}
    for row in rows.values():
        assert row["sessions_ended_at"] == [ends[session] for session in row["session_ids"]]
        assert row["sessions_ended_at"] == sorted(row["sessions_ended_at"])


def test_split_times_leave_the_configured_shares_of_events_after_them(spark: SparkSession) -> None:
    rows = [(f"u{minute}", minute, "a") for minute in range(100)]
    sessions = sessionize(events(spark, rows), SessionizeConfig(), by_key=False)
    (times,) = split_time_quantiles(sessions, SequencesConfig(validation_fraction=0.2, test_fraction=0.1)).collect()
    after_training = sum(START + timedelta(minutes=minute) >= times["train_until"] for _, minute, _ in rows)
    after_validation = sum(START + timedelta(minutes=minute) >= times["validation_until"] for _, minute, _ in rows)
    assert abs(after_training - 30) <= 1
    assert abs(after_validation - 10) <= 1
