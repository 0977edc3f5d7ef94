"""V-SkNN: what stood in the past sessions that are most like the current one."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.evaluation.baselines.frames import item_counts, ranked, training_sessions
from llm_spark.evaluation.baselines.vsknn_kernel import VsknnSettings, vector_session_knn


def vsknn(
    test_sequences: DataFrame,
    training_sequences: DataFrame,
    vocabulary: DataFrame,
    list_length: int,
    settings: VsknnSettings | None = None,
) -> DataFrame:
    """Vector multiplication session-based kNN (Ludewig and Jannach 2018).

    A part of the test rows gets, for each item in its queries, the `sample_size` most recent sessions with it: the most recent of all sessions
    that share an item with a query are always among them (Kersbergen et al. 2022, "Serenade"), so the index is bounded and nothing is lost.
    """
    settings = settings or VsknnSettings()
    sessions = training_sessions(training_sequences)
    items = _items(sessions, item_counts(training_sequences, vocabulary), settings)
    return ranked(
        test_sequences, items, _recent_sessions(sessions, settings), vector_session_knn(settings), list_length
    )


def _recent_sessions(sessions: DataFrame, settings: VsknnSettings) -> DataFrame:
    """For each item the most recent sessions with it: item, ended_at, sequence_id, start, tokens (each once)."""
    most_recent_first = Window.partitionBy("item").orderBy(F.desc("ended_at"), F.desc("sequence_id"), F.desc("start"))
    by_item = sessions.withColumn("tokens", F.array_distinct("tokens")).withColumn("item", F.explode("tokens"))
    recent = by_item.withColumn("place", F.row_number().over(most_recent_first))
    return recent.where(F.col("place") <= settings.sample_size).drop("place")


def _items(sessions: DataFrame, counts: DataFrame, settings: VsknnSettings) -> DataFrame:
    """token, number (popularity), more_number (what its scores are multiplied by)."""
    num_sessions = sessions.agg(F.count("*").alias("num_sessions"))
    occurrences = sessions.select(F.explode("tokens").alias("token")).groupBy("token").agg(F.count("*").alias("num"))
    idf = F.greatest(F.log(F.col("num_sessions") / F.col("num")), F.lit(0.0))
    # An item that no session has gets no score to be multiplied.
    weight = F.coalesce(1 + settings.idf_weight * idf, F.lit(1.0))
    return (
        counts.join(occurrences, "token", "left")
        .crossJoin(F.broadcast(num_sessions))
        .select("token", F.col("num_events").alias("number"), weight.alias("more_number"))
    )
