"""The reasons of recommendations by item id."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


def with_reasons_named(recommended: DataFrame, vocabulary: DataFrame, num_reasons: int) -> DataFrame:
    """`reasons`, up to `num_reasons` of {token, weight}, as {item_id, weight} in the same order; null stays null.

    One broadcast join for each place in the list: exploding and grouping again would shuffle every recommendation. Every
    token of a reason matches one item of the vocabulary.
    """
    named = recommended
    for place in range(num_reasons):
        items = vocabulary.select(F.col("token").alias(f"token_{place}"), F.col("item_id").alias(f"item_{place}"))
        token = F.get(F.col("reasons"), F.lit(place))["token"]
        named = named.withColumn(f"token_{place}", token).join(F.broadcast(items), f"token_{place}", "left")
    item_ids = F.array(*[F.col(f"item_{place}") for place in range(num_reasons)]).cast("array<string>")
    by_item_id = F.transform(
        "reasons",
        lambda reason, place: F.struct(F.get(item_ids, place).alias("item_id"), reason["weight"].alias("weight")),
    )
    helpers = [f"{kind}_{place}" for kind in ("token", "item") for place in range(num_reasons)]
    return named.withColumn("reasons", by_item_id).drop(*helpers)
