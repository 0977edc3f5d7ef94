"""Recommenders without a model, ranked on the same positions and the same vocabulary as the model."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F


def popularity_ranks(targets: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame) -> DataFrame:
    """Rank of each target when all items are ordered by how often training predicts them; ties count against us.

    `targets` has user_id, session_position, token. Every target whose token is in the vocabulary finds its rank, others get null.
    """
    # Only what a row predicts: its context was predicted in another row.
    predicted = F.slice("tokens", F.col("first_target") + 1, F.size("tokens"))
    counts = (
        training_sequences.select(F.explode(predicted).alias("token"))
        .groupBy("token")
        .agg(F.count("*").alias("num_events"))
    )
    candidates = vocabulary.select("token").join(counts, "token", "left").fillna(0, ["num_events"])
    popular_first = Window.orderBy(F.desc("num_events")).rangeBetween(Window.unboundedPreceding, Window.currentRow)
    ranked = candidates.withColumn("rank", F.count("*").over(popular_first).cast("int"))
    return targets.drop("rank").join(ranked.select("token", "rank"), "token", "left")
