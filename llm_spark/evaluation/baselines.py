"""Recommenders without a model, ranked on the same positions and the same vocabulary as the model."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.evaluation.metrics import item_popularity

Baseline = Callable[[DataFrame, DataFrame, DataFrame, int], DataFrame]


def popularity(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, list_length: int
) -> DataFrame:
    """One row a position that the test sequences predict, ranked by how often training predicts each item; ties count against us."""
    steps = test_sequences.select(
        "sequence_id", "user_id", "session_starts", "first_target", F.posexplode("tokens").alias("position", "token")
    )
    session_start = F.array_max(F.filter("session_starts", lambda start: start <= F.col("position")))
    targets = steps.where(F.col("position") >= F.col("first_target")).select(
        "sequence_id", "user_id", "position", (F.col("position") - session_start).alias("session_position"), "token"
    )
    candidates = item_popularity(vocabulary, training_sequences)
    popular_first = Window.orderBy(F.desc("num_events")).rangeBetween(Window.unboundedPreceding, Window.currentRow)
    ranked = candidates.withColumn("rank", F.count("*").over(popular_first).cast("int"))
    best = candidates.orderBy(F.desc("num_events"), "token").limit(list_length)
    places = F.sort_array(F.collect_list(F.struct((-F.col("num_events")).alias("order"), "token")))
    top = best.agg(F.transform(places, lambda place: place["token"]).alias("top"))
    return targets.join(ranked.select("token", "rank"), "token", "left").crossJoin(F.broadcast(top))


BASELINES: dict[str, Baseline] = {"popularity": popularity}
