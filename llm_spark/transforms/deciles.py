"""Users in order of what is foretold of them, and their tenths: exact, without a sort of all of them in one place.

The rows are sorted over ranges of the order, a task each. A row's rank is then its place in its range plus the rows in the ranges before it,
of which there is one number a range and outcome.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

NUM_DECILES = 10
_PLACES_IN_A_RANGE = 1 << 33
"""Spark's monotonically_increasing_id is the range's number times this, plus the place in it."""


def in_order(foretold: DataFrame, num_ranges: int) -> DataFrame:
    """The rows of (user_id, outcome, value, ...), whose values are not null, with `place`: it rises, within an outcome, from the largest value
    to the smallest, of equal ones by user_id.

    Where the ranges end is drawn anew each time that this is computed: persist it before `with_deciles`.
    """
    order = F.asc("outcome"), F.desc("value"), F.asc("user_id")
    by_range = foretold.repartitionByRange(num_ranges, *order).sortWithinPartitions(*order)
    return by_range.withColumn("place", F.monotonically_increasing_id())


def with_deciles(placed: DataFrame) -> DataFrame:
    """`decile` in place of `place`: of n rows of an outcome, the one of rank r (from 1) is in decile floor(10 (r - 1) / n) + 1, so that their
    sizes differ by one at most."""
    in_range = F.floor(F.col("place") / F.lit(_PLACES_IN_A_RANGE)).alias("range")
    ranges = placed.groupBy("outcome", in_range).agg(
        F.count("*").alias("num_rows"), F.min("place").alias("first_place")
    )
    of_outcome = Window.partitionBy("outcome")
    before = of_outcome.orderBy("range").rowsBetween(Window.unboundedPreceding, -1)
    counted = ranges.select(
        "outcome",
        "range",
        "first_place",
        F.coalesce(F.sum("num_rows").over(before), F.lit(0)).alias("num_before"),
        F.sum("num_rows").over(of_outcome).alias("num_of_outcome"),
    )
    # Every row lies in one range of its outcome.
    located = placed.withColumn("range", in_range).join(F.broadcast(counted), ["outcome", "range"], "inner")
    decile = F.expr(f"{NUM_DECILES} * (num_before + place - first_place) DIV num_of_outcome") + 1
    return located.withColumn("decile", decile.cast("int")).drop(
        "place", "range", "first_place", "num_before", "num_of_outcome"
    )
