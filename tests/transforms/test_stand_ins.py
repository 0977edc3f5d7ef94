"""What stands in for the model's recommendations, on a handful of rows."""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import DataFrame, SparkSession

from llm_spark.transforms.offers import item_activity, of_the_model, users_set_aside, with_fallback

SESSIONS_DDL = (
    "user_id string, started_at timestamp, ended_at timestamp, item_ids array<string>, event_times array<timestamp>"
)
RECOMMENDED_DDL = "user_id string, rank int, item_id string, score double, probability double, source string"
POPULAR_DDL = "popular_rank int, popular_item_id string, popular_probability double"


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 1, day, hour)


def session(user: str, *events: tuple[str, datetime]) -> tuple:
    items, times = zip(*events, strict=True)
    return user, min(times), max(times), list(items), list(times)


def test_events_of_the_days_before_the_night_are_counted_by_item(spark: SparkSession) -> None:
    sessions = spark.createDataFrame(
        [
            session("anna", ("a", at(2)), ("a", at(3)), ("b", at(3, 1))),  # the first a day too early
            session("ben", ("a", at(9, 23)), ("c", at(10))),  # the second is of the night after
            session("ben", ("new", at(5)), ("newer", at(6)), ("b", at(6))),
            session("carl", ("c", at(1))),
            session("carl", ("c", at(10, 5))),
        ],
        SESSIONS_DDL,
    )
    vocabulary = spark.createDataFrame([(2, "a"), (3, "b"), (4, "c")], "token int, item_id string")
    found = item_activity(sessions, vocabulary, since=at(3), night=at(10)).collect()
    # Unknown items are one: token 1.
    assert {row["token"]: row["num_events"] for row in found} == {2: 2, 3: 2, 1: 2}


def test_users_are_without_history_if_every_session_before_the_night_was_set_aside(spark: SparkSession) -> None:
    kept = spark.createDataFrame([session("half", ("a", at(2))), session("later", ("a", at(8)))], SESSIONS_DDL)
    aside = [session(user, ("a", at(3))) for user in ("half", "bot", "bot", "later")]
    aside.append(session("tomorrow", ("a", at(7))))
    found = users_set_aside(spark.createDataFrame(aside, SESSIONS_DDL), kept, night=at(7))
    assert sorted(row["user_id"] for row in found.collect()) == ["bot", "later"]


def recommended(spark: SparkSession) -> DataFrame:
    rows = [
        ("anna", 1, "a", 3.0, 0.6, "model"),
        ("anna", 2, "b", 2.0, 0.3, "model"),
        ("ben", 1, None, None, None, "abstained"),
        ("carl", 1, None, None, None, "fallback"),
    ]
    return spark.createDataFrame(rows, RECOMMENDED_DDL)


def test_popular_items_are_listed_for_those_without_history_and_nobody_else(spark: SparkSession) -> None:
    popular = spark.createDataFrame([(1, "p", 0.5), (2, "q", 0.25)], POPULAR_DDL)
    without_history = spark.createDataFrame([(None,), ("bot",)], "user_id string")
    found = with_fallback(recommended(spark), popular, without_history)
    rows = found.select("user_id", "rank", "item_id", "score", "probability", "source").collect()
    listed = [
        (user, rank, item, None, chance, "fallback")
        for user in (None, "bot", "carl")
        for rank, item, chance in ((1, "p", 0.5), (2, "q", 0.25))
    ]
    others = [tuple(row) for row in recommended(spark).where("source <> 'fallback'").collect()]
    assert sorted(map(tuple, rows), key=str) == sorted(listed + others, key=str)


def test_where_nothing_is_popular_those_without_history_have_a_row_that_says_that_there_is_none(
    spark: SparkSession,
) -> None:
    nothing = spark.createDataFrame([], POPULAR_DDL)
    found = with_fallback(recommended(spark), nothing, spark.createDataFrame([("bot",)], "user_id string"))
    sources = {(row["user_id"], row["rank"]): (row["item_id"], row["source"]) for row in found.collect()}
    assert sources[("bot", 1)] == sources[("carl", 1)] == sources[("ben", 1)] == (None, "abstained")
    assert len(sources) == 5


def test_the_models_predictions_are_those_it_made_and_all_of_an_earlier_version(spark: SparkSession) -> None:
    rows = recommended(spark).unionByName(spark.createDataFrame([("old", 1, "a", 1.0, 0.1, None)], RECOMMENDED_DDL))
    assert sorted(row["user_id"] for row in of_the_model(rows).collect()) == ["anna", "anna", "old"]
    assert of_the_model(rows.drop("source")).count() == 5
