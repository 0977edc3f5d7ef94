"""Baselines that count: popularity, popularity in the session, recency."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.evaluation.baselines.frames import item_counts, predicted_events, ranked
from llm_spark.evaluation.baselines.recommenders import last_seen, session_counts, unpersonal

RECENT_SECONDS = 7 * 86_400
"""What is popular of late: in the last week of training, which has every weekday once (RecentPop in Ji et al. 2020, "A Re-visit of the
Popularity Baseline in Recommender Systems")."""


def popularity(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, list_length: int
) -> DataFrame:
    """Every item by how often training predicts it (POP in Hidasi et al. 2016, "Session-based Recommendations with Recurrent Neural
    Networks")."""
    counts = item_counts(training_sequences, vocabulary).withColumnRenamed("num_events", "number")
    return ranked(test_sequences, counts, None, unpersonal, list_length)


def session_popularity(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, list_length: int
) -> DataFrame:
    """The items of the session so far by how often they stand in it, equals and all others by popularity (S-POP in Hidasi et al. 2016)."""
    counts = item_counts(training_sequences, vocabulary).withColumnRenamed("num_events", "number")
    return ranked(test_sequences, counts, None, session_counts, list_length)


def recency(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, list_length: int
) -> DataFrame:
    """The items that the user had, the latest first; then all others by their number of events in the last RECENT_SECONDS of training."""
    events = predicted_events(training_sequences)
    newest = events.agg(F.max("event_time").alias("newest"))
    is_recent = F.col("event_time") > F.col("newest") - RECENT_SECONDS
    counts = (
        events.crossJoin(F.broadcast(newest))
        .groupBy("token")
        .agg(F.count_if(is_recent).alias("number"), F.count("*").alias("more_number"))
    )
    items = vocabulary.select("token").join(counts, "token", "left").fillna(0, ["number", "more_number"])
    return ranked(test_sequences, items, None, last_seen, list_length)
