"""What stands in for the model's own recommendations, and which predictions are its own."""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.tokens import ABSTAINED, FALLBACK, FROM_MODEL, UNKNOWN_TOKEN


def item_activity(sessions: DataFrame, vocabulary: DataFrame, since: datetime, night: datetime) -> DataFrame:
    """(token, num_events): events of each item from `since` on, before the night. Those that the vocabulary lacks are one, the unknown."""
    lively = sessions.where((F.col("ended_at") >= F.lit(since)) & (F.col("started_at") < F.lit(night)))
    events = lively.select(F.explode(F.arrays_zip("item_ids", "event_times")).alias("event")).select(
        F.col("event.item_ids").alias("item_id"), F.col("event.event_times").alias("event_time")
    )
    inside = events.where((F.col("event_time") >= F.lit(since)) & (F.col("event_time") < F.lit(night)))
    by_item = inside.groupBy("item_id").agg(F.count("*").alias("num_events"))
    # Every item matches at most one token.
    known = by_item.join(vocabulary.select("item_id", "token"), "item_id", "left")
    token = F.coalesce("token", F.lit(UNKNOWN_TOKEN))
    return known.groupBy(token.alias("token")).agg(F.sum("num_events").alias("num_events"))


def users_set_aside(set_aside: DataFrame, sessions: DataFrame, night: datetime) -> DataFrame:
    """(user_id): users who had sessions before the night, all of which were set aside."""
    users, users_with_sessions = (
        rows.where(F.col("started_at") < F.lit(night)).select("user_id").distinct() for rows in (set_aside, sessions)
    )
    return users.join(users_with_sessions, "user_id", "left_anti")


def with_fallback(recommended: DataFrame, popular: DataFrame, without_history: DataFrame) -> DataFrame:
    """The recommendations, each row of source fallback, and each user `without_history`, replaced by the list of popular items.

    `popular` is (popular_rank, popular_item_id, popular_probability), a few rows; where it has none, these users have one row of source
    abstained instead.
    """
    strangers = without_history.select("user_id", F.lit(1).alias("rank"), F.lit(FALLBACK).alias("source"))
    rows = recommended.unionByName(strangers, allowMissingColumns=True)
    # Every row of source fallback matches all popular items, and every other none.
    matched = rows.join(F.broadcast(popular.withColumn("source", F.lit(FALLBACK))), "source", "left")
    is_in_vain = (F.col("source") == FALLBACK) & F.col("popular_item_id").isNull()
    return matched.withColumns(
        {
            "rank": F.coalesce("popular_rank", "rank"),
            "item_id": F.coalesce("popular_item_id", "item_id"),
            "probability": F.coalesce("popular_probability", "probability"),
            "source": F.when(is_in_vain, F.lit(ABSTAINED)).otherwise(F.col("source")),
        }
    ).drop("popular_rank", "popular_item_id", "popular_probability")


def of_the_model(predictions: DataFrame) -> DataFrame:
    """The recommendations that a model made: those of an earlier version of this program all are."""
    if "source" not in predictions.columns:
        return predictions
    return predictions.where(F.coalesce("source", F.lit(FROM_MODEL)) == FROM_MODEL)
