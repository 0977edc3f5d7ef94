"""Recommenders without a model, ranked on the same positions and the same vocabulary as the model."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.schemas import FIRST_ITEM_TOKEN


def popularity_ranks(targets: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame) -> DataFrame:
    """Rank of each target when all items are ordered by how often they occur in training; ties count against us.

    `targets` has user_id, session_position, token. Every target whose token is in the vocabulary finds its rank, others get null.
    """
    # A row's context stands in another row already, except before a history's very first target.
    own = F.when(F.col("first_target") == 1, F.col("tokens")).otherwise(
        F.slice("tokens", F.col("first_target") + 1, F.size("tokens"))
    )
    counts = (
        training_sequences.select(F.explode(own).alias("token")).groupBy("token").agg(F.count("*").alias("num_events"))
    )
    candidates = vocabulary.select("token").join(counts, "token", "left").fillna(0, ["num_events"])
    popular_first = Window.orderBy(F.desc("num_events")).rangeBetween(Window.unboundedPreceding, Window.currentRow)
    ranked = candidates.withColumn("rank", F.count("*").over(popular_first).cast("int"))
    known = ranked.where(F.col("token") >= FIRST_ITEM_TOKEN).select("token", "rank")
    return targets.drop("rank").join(known, "token", "left")
