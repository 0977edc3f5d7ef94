"""Baselines with one list an item: what follows it (first-order Markov chain), what it shares sessions with (item-kNN)."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.evaluation.baselines.frames import item_counts, ranked, training_sessions
from llm_spark.evaluation.baselines.recommenders import item_lists

MAX_NEIGHBOURS = 500
"""Items on a list, or twice the length of the list that is asked for where that is more: a rank within it is exact, since what is cut off
is as good as nothing on the list but its end."""
MAX_SESSION_ITEMS = 100
"""Different items of a session that are counted as sharing it, the latest ones: at most 9,900 pairs a session."""
REGULARISATION = 20
"""Sessions that every item is thought to have beyond its own, so that rare items that met by chance do not come first (Hidasi et al. 2016)."""


def markov(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, list_length: int
) -> DataFrame:
    """By how often an item followed the latest one inside a session of training: a first-order Markov chain, backed off to popularity.

    Of one item's successors their counts stand in the order of the probabilities P(next | latest).
    """
    pair = F.transform(
        F.sequence(F.lit(1), F.size("tokens") - 1),
        lambda place: F.struct(
            F.get(F.col("tokens"), place - 1).alias("item"), F.get(F.col("tokens"), place).alias("token")
        ),
    )
    sessions = training_sessions(training_sequences).where(F.size("tokens") > 1)
    pairs = sessions.select(F.explode(pair).alias("pair")).select("pair.item", "pair.token")
    scores = pairs.groupBy("item", "token").agg(F.count("*").cast("double").alias("score"))
    return _by_lists(test_sequences, training_sequences, vocabulary, scores, list_length)


def item_knn(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, list_length: int
) -> DataFrame:
    """By the cosine of the sessions in which an item stands and those of the latest one, regularised (Item-KNN in Hidasi et al. 2016):
    num_shared / sqrt((num_sessions + 20) * (num_sessions of the latest + 20)).

    There an item is not its own neighbour. Here it is, by the sessions that hold it more than once: where items repeat, that is most of what
    there is to know (rsc15-100k: HR@20 .602 with it, .370 without).
    """
    sessions = training_sessions(training_sequences)
    latest_items = F.slice(F.array_distinct(F.reverse("tokens")), 1, MAX_SESSION_ITEMS)
    repeated = F.filter("items", lambda item: F.size(F.filter("tokens", lambda token: token == item)) > 1)
    in_session = sessions.select("tokens", latest_items.alias("items")).select("items", repeated.alias("repeated"))
    num_sessions = in_session.select(F.explode("items").alias("token")).groupBy("token").agg(F.count("*").alias("num"))
    different = (
        in_session.where(F.size("items") > 1)
        .select("items", F.explode("items").alias("item"))
        .select("item", F.explode("items").alias("token"))
        .where(F.col("item") != F.col("token"))
    )
    equal = in_session.select(F.explode("repeated").alias("item")).select("item", F.col("item").alias("token"))
    pairs = different.unionByName(equal)
    shared = pairs.groupBy("item", "token").agg(F.count("*").alias("num_shared"))
    of_item = num_sessions.select(F.col("token").alias("item"), F.col("num").alias("num_of_item"))
    product = (F.col("num") + REGULARISATION) * (F.col("num_of_item") + REGULARISATION)
    scores = (
        shared.join(num_sessions, "token", "inner")
        .join(of_item, "item", "inner")
        .select("item", "token", (F.col("num_shared") / F.sqrt(product.cast("double"))).alias("score"))
    )
    return _by_lists(test_sequences, training_sequences, vocabulary, scores, list_length)


def _by_lists(
    test_sequences: DataFrame, training_sequences: DataFrame, vocabulary: DataFrame, scores: DataFrame, list_length: int
) -> DataFrame:
    """Ranks by item, token, score: of each item's tokens those with the highest scores, of equals the more popular."""
    counts = item_counts(training_sequences, vocabulary)
    best_first = Window.partitionBy("item").orderBy(F.desc("score"), F.desc("num_events"), "token")
    kept = (
        scores.join(counts, "token", "inner")
        .withColumn("place", F.row_number().over(best_first))
        .where(F.col("place") <= max(MAX_NEIGHBOURS, 2 * list_length))
    )
    lists = kept.groupBy("item").agg(F.collect_list(F.struct("token", "score")).alias("on_list"))
    learned = lists.select(
        "item",
        F.col("item").alias("start"),
        F.col("on_list.token").alias("tokens"),
        F.col("on_list.score").alias("numbers"),
    )
    return ranked(test_sequences, counts.withColumnRenamed("num_events", "number"), learned, item_lists, list_length)
