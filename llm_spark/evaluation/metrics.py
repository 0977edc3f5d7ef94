"""Ranking and list metrics of one recommender over all test positions: one pass in Spark, of which only sums reach the driver.

A ranks frame has one row a predicted position: sequence_id, user_id, position, session_position, token, rank, top. Rank 1 is the best of
the whole vocabulary, ties count against us, and null means that the true item is not in the vocabulary: a miss at every k. `top` lists
the first tokens that are recommended there, best first.
"""

from __future__ import annotations

import functools

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.evaluation.baselines.frames import item_counts
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.sums_kernel import SUMS_DDL, MetricRules, merged_sums, partial_sums


def item_popularity(
    vocabulary: DataFrame, training_sequences: DataFrame, categories: DataFrame | None = None
) -> DataFrame:
    """One row an item of the vocabulary: token, num_events (how often training predicts it), category (a code from 1; 0 for none).

    `categories` is (item_id, category), at most one row an item.
    """
    items = item_counts(training_sequences, vocabulary)
    if categories is None:
        return items
    # Each item has one token, and one category at most.
    named = items.join(vocabulary.select("token", "item_id"), "token", "inner").join(categories, "item_id", "left")
    # Codes in the order of the names; null has none.
    code = F.when(F.col("category").isNotNull(), F.dense_rank().over(Window.orderBy(F.asc_nulls_last("category"))))
    return named.select("token", "num_events", F.coalesce(code, F.lit(0)).alias("category"))


def item_categories(events: DataFrame, attribute: str) -> DataFrame:
    """(item_id, category): the value that the attribute has in most events of the item, the first in order among equals."""
    values = events.select("item_id", F.element_at("attributes", attribute).alias("category"))
    counts = values.where(F.col("category").isNotNull()).groupBy("item_id", "category").count()
    most_frequent_first = Window.partitionBy("item_id").orderBy(F.desc("count"), F.asc("category"))
    ranked = counts.withColumn("place", F.row_number().over(most_frequent_first))
    return ranked.where(F.col("place") == 1).select("item_id", "category")


def collected_items(popularity: DataFrame) -> Items:
    """The rows of `item_popularity` on the driver: numbers of the vocabulary's size, as a model's own weights are."""
    table = popularity.toArrow()
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return Items.counted(columns["token"], columns["num_events"], columns.get("category"))


def metric_sums(ranks: DataFrame, sequences: DataFrame, rules: MetricRules) -> DataFrame:
    """Rows (slice, content) for `Measured.of_rows`: every metric's sums over the positions of `ranks`, all of which `sequences` predict.

    One row a slice: it holds as many numbers as there are replicates and metrics, however many positions there are.
    """
    confidence = F.col("confidence") if "confidence" in ranks.columns else F.lit(None).cast("float")
    ranked = ranks.select(
        "sequence_id", "user_id", "position", "session_position", "token", "rank", "top", confidence.alias("confidence")
    )
    # Each position finds the one row that it stands in.
    places = ranked.join(sequences.select("sequence_id", "session_starts", "event_times"), "sequence_id", "inner")
    session_start = F.col("position") - F.col("session_position")
    sessions_before = F.size(F.filter("session_starts", lambda start: start < session_start))
    before = F.when(F.col("position") > 0, F.element_at("event_times", F.col("position")))
    of_session = Window.partitionBy("sequence_id", "session_start")
    told = places.select(
        "sequence_id",
        "position",
        session_start.alias("session_start"),
        F.xxhash64("user_id").alias("user_hash"),
        "rank",
        "token",
        "session_position",
        sessions_before.alias("sessions_before"),
        (F.element_at("event_times", F.col("position") + 1) - before).alias("gap_seconds"),
        "top",
        "confidence",
    )
    is_first = F.col("position") == F.min("position").over(of_session)
    best = F.coalesce(F.min("rank").over(of_session), F.lit(0))
    positions = told.withColumn("session_rank", F.when(is_first, best))
    # Broadcast by Spark as part of the function: of the size of the vocabulary.
    partial = positions.drop("sequence_id", "position", "session_start").mapInArrow(
        functools.partial(partial_sums, rules=rules), SUMS_DDL
    )
    return partial.repartition("slice").mapInArrow(functools.partial(merged_sums, rules=rules), SUMS_DDL)


def measured_rows(sums: DataFrame) -> list[tuple[int, bytes]]:
    table: pa.Table = sums.toArrow()
    return list(zip(table.column("slice").to_pylist(), table.column("content").to_pylist(), strict=True))
