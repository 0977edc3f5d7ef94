"""Ranking metrics over all predicted positions, computed in Spark.

A ranks frame has one row a predicted position: user_id, session_position, rank. Rank 1 is the best of the whole vocabulary, ties count
against us, and null means that the true item is not in the vocabulary: a miss at every k.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

NORMAL_975 = 1.959963984540054


def _gains(ks: Sequence[int]) -> dict[str, Column]:
    """Each metric's contribution of one position. One relevant item a position, so NDCG@k = 1 / log2(1 + rank) within k (Jarvelin 2002)."""
    rank = F.col("rank")

    def within(k: int, gain: Column) -> Column:
        return F.when(rank <= k, gain).otherwise(F.lit(0.0))

    gains = {"accuracy": within(1, F.lit(1.0))}
    for k in ks:
        gains[f"recall@{k}"] = within(k, F.lit(1.0))
        gains[f"mrr@{k}"] = within(k, 1.0 / rank)
        gains[f"ndcg@{k}"] = within(k, 1.0 / F.log2(1.0 + rank))
    return gains


def ranking_metrics(ranks: DataFrame, ks: Sequence[int]) -> DataFrame:
    """slice, name, value, ci_low, ci_high, num_examples.

    A value is the mean over positions. Its 95 % interval takes the user as the unit of sampling: mean +- 1.96 s with
    s^2 = sum_u (gain_u - mean * n_u)^2 / n^2, the linearised variance of a ratio (Cochran, Sampling Techniques, 6.3). One user alone has no interval.
    """
    gains = _gains(ks)
    place = F.when(F.col("session_position") == 0, "first_in_session").otherwise("within_session")
    sliced = ranks.select("user_id", "rank", F.explode(F.array(F.lit("all"), place)).alias("slice"))
    by_user = sliced.groupBy("slice", "user_id").agg(
        F.count("*").alias("num_positions"), *[F.sum(gain).alias(name) for name, gain in gains.items()]
    )
    long = by_user.unpivot(["slice", "user_id", "num_positions"], list(gains), "name", "gain")
    n, gain = F.col("num_positions"), F.col("gain")
    sums = long.groupBy("slice", "name").agg(
        F.sum(n).alias("num_examples"),
        F.count("*").alias("num_users"),
        F.sum(gain).alias("total"),
        F.sum(gain * gain).alias("gain_gain"),
        F.sum(gain * n).alias("gain_n"),
        F.sum(n * n).alias("n_n"),
    )
    mean = F.col("total") / F.col("num_examples")
    squares = F.col("gain_gain") - 2 * mean * F.col("gain_n") + mean * mean * F.col("n_n")
    has_interval = F.col("num_users") > 1
    spread = NORMAL_975 * F.sqrt(F.greatest(squares, F.lit(0.0))) / F.col("num_examples")
    return sums.select(
        "slice",
        "name",
        mean.alias("value"),
        F.when(has_interval, F.greatest(mean - spread, F.lit(0.0))).alias("ci_low"),
        F.when(has_interval, F.least(mean + spread, F.lit(1.0))).alias("ci_high"),
        "num_examples",
    )
