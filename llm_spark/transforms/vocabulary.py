"""Tokens for items and event types: append-only, so that a token means the same item in every model."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.tokens import FIRST_ITEM_TOKEN


def item_counts(sessions: DataFrame) -> DataFrame:
    """item_id, num_events, first_seen_at over all events of `sessions`."""
    return _counts(sessions, "item_ids", "item_id")


def event_type_counts(sessions: DataFrame) -> DataFrame:
    return _counts(sessions, "event_types", "event_type")


def _counts(sessions: DataFrame, array: str, name: str) -> DataFrame:
    steps = sessions.select(F.explode(F.arrays_zip(F.col(array), F.col("event_times"))).alias("step"))
    named = steps.select(F.col(f"step.{array}").alias(name), F.col("step.event_times").alias("event_time"))
    return named.groupBy(name).agg(F.count("*").alias("num_events"), F.min("event_time").alias("first_seen_at"))


def new_tokens(counts: DataFrame, known: DataFrame, name: str, min_count: int, max_tokens: int) -> DataFrame:
    """Rows to append: what is not in `known` and frequent enough, numbered on from its largest token, the most frequent first.

    `name` is the column of item ids (or event types). `max_tokens` bounds the whole vocabulary, 0 for no bound.
    """
    already = known.agg(
        F.coalesce(F.max("token"), F.lit(FIRST_ITEM_TOKEN - 1)).alias("last_token"), F.count("*").alias("num_known")
    )
    frequent = counts.where(F.col("num_events") >= min_count).join(known.select(name), name, "left_anti")
    by_frequency = Window.orderBy(F.desc("num_events"), F.asc(name))
    numbered = frequent.withColumn("place", F.row_number().over(by_frequency)).crossJoin(F.broadcast(already))
    if max_tokens:
        numbered = numbered.where(F.col("num_known") + F.col("place") <= max_tokens)
    return numbered.select(
        (F.col("last_token") + F.col("place")).cast("int").alias("token"), name, "num_events", "first_seen_at"
    )
