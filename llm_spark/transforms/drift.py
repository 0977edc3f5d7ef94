"""What drift is judged by, counted: few numbers a window, whatever the size of the tables.

Frames of counts have the columns measure, window, category and num; `all_counts` joins them. A window is numbered backwards from the
judged one, 0. Items, sources and other categories beyond the most frequent are counted in groups by a hash, so that what leaves Spark is bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.config import DriftConfig
from llm_spark.transforms.drift_counts import (
    EVENTS,
    HITS,
    ITEM_SQUARES,
    MISSING,
    NEW_ITEMS,
    SESSION_LENGTHS,
    TOTALS,
    UNKNOWN_ITEMS,
    USERS,
    VALUELESS,
)
from llm_spark.transforms.drift_kernel import Calendar

_LEAST_CHANCE_LOG2 = 40


def all_counts(frames: Sequence[DataFrame]) -> DataFrame:
    """All counts in one frame; `grouped` reads it twice, so that it is worth keeping."""
    return functools.reduce(DataFrame.unionByName, frames)


def grouped(counts: DataFrame, settings: DriftConfig) -> DataFrame:
    """The counts with rare categories in groups: `category` is null for these and `tail_group` for the others.

    The most frequent are those of the earlier windows, so that what newly floods the judged one stands out.
    """
    num_before = F.sum(F.when(F.col("window") > 0, F.col("num")).otherwise(0))
    categories = counts.groupBy("measure", "category").agg(
        num_before.alias("num_before"), F.sum("num").alias("num_in_all")
    )
    is_no_mix = F.col("measure").isin(TOTALS, HITS)
    by_frequency = Window.partitionBy("measure").orderBy(F.desc("num_before"), F.desc("num_in_all"), "category")
    placed = categories.where(~is_no_mix).withColumn("place", F.row_number().over(by_frequency))
    frequent = placed.where(F.col("place") <= settings.num_top_items).select(
        "measure", "category", F.lit(True).alias("is_named")
    )
    # At most num_top_items categories of each measure.
    marked = counts.join(F.broadcast(frequent), ["measure", "category"], "left")
    is_named = F.coalesce("is_named", is_no_mix)
    group = F.pmod(F.xxhash64("category"), F.lit(settings.num_tail_groups)).cast("int")
    labelled = marked.select(
        "measure",
        "window",
        F.when(is_named, F.col("category")).alias("category"),
        F.when(~is_named, group).alias("tail_group"),
        "num",
    )
    return labelled.groupBy("measure", "window", "category", "tail_group").agg(F.sum("num").alias("num"))


def event_counts(events: DataFrame, calendar: Calendar, attributes: Sequence[str]) -> DataFrame:
    """Counts of events in all, by type, hour, raw file and form of ids, of those without a value by type, and of those that lack each
    attribute."""
    in_windows = _in_windows(events, calendar, F.col("event_date"))
    categories = [
        (TOTALS, F.lit(EVENTS)),
        ("event_types", F.col("event_type")),
        (VALUELESS, F.when(F.col("value").isNull(), F.col("event_type"))),
        ("hours", F.hour("event_time").cast("string")),
        ("sources", source_form(F.col("source_file"))),
        ("item_ids", id_form(F.col("item_id"))),
        ("user_ids", id_form(F.col("user_id"))),
    ]
    for name in attributes:
        is_missing = F.try_element_at("attributes", F.lit(name)).isNull()
        categories.append((TOTALS, F.when(is_missing, F.lit(f"{MISSING}{name}"))))
    counted = [F.struct(F.lit(measure).alias("measure"), which.alias("category")) for measure, which in categories]
    each = in_windows.select("window", F.explode(F.array(*counted)).alias("of"))
    known = each.select("of.measure", "window", "of.category").where(F.col("category").isNotNull())
    return _numbered(known.groupBy("measure", "window", "category").agg(F.count("*").alias("num")))


def user_counts(events: DataFrame, calendar: Calendar) -> DataFrame:
    """Users with an event in a window."""
    in_windows = _in_windows(events, calendar, F.col("event_date"))
    return _long(in_windows.groupBy("window").agg(F.count_distinct("user_id").alias(USERS)), TOTALS, [USERS])


def source_form(source_file: Column) -> Column:
    """A raw file's path with # for each run of digits, and without the end of a compressed file: the same for the files of all days."""
    return F.regexp_replace(F.regexp_replace(source_file, r"\.(gz|bz2|zst|snappy|lz4)$", ""), r"\d+", "#")


def id_form(identifier: Column) -> Column:
    """How an id is written: 9 for digits, a for letters, h where both alternate as in a hash, and its length."""
    letters = F.regexp_replace(F.regexp_replace(identifier, r"\d+", "9"), r"\p{L}+", "a")
    form = F.regexp_replace(letters, r"[a9]{3,}", "h")
    return F.concat(form, F.lit(" of "), F.length(identifier).cast("string"))


def item_windows(events: DataFrame, vocabulary: DataFrame | None, calendar: Calendar, new_item_days: int) -> DataFrame:
    """One row an item and window it has events in: `num_events`, `is_new` (no event in `new_item_days` before the window), `is_unknown`
    (not in the vocabulary; null without one)."""
    since = calendar.first_day - timedelta(days=new_item_days)
    recent = events.where(F.col("event_date").between(F.lit(since), F.lit(calendar.as_of)))
    item_days = recent.groupBy("item_id", "event_date").agg(F.count("*").alias("num_events"))
    previous = F.lag("event_date").over(Window.partitionBy("item_id").orderBy("event_date"))
    in_windows = _in_windows(item_days.withColumn("previous_date", previous), calendar, F.col("event_date"))
    items = in_windows.groupBy("item_id", "window").agg(
        F.sum("num_events").alias("num_events"),
        # Of the item's first day in the window: its last day before the window.
        F.min_by("previous_date", "event_date").alias("previous_date"),
    )
    first_day = F.date_sub(F.lit(calendar.as_of), F.col("window") * calendar.period_days + (calendar.window_days - 1))
    pause_days = F.datediff(first_day, "previous_date")
    marked = items.select(
        "item_id", "window", "num_events", F.coalesce(pause_days > new_item_days, F.lit(True)).alias("is_new")
    )
    if vocabulary is None:
        return marked.withColumn("is_unknown", F.lit(None).cast("boolean"))
    known_items = vocabulary.select("item_id", F.lit(False).alias("is_unknown"))
    # The vocabulary has each item once.
    with_known = marked.join(known_items, "item_id", "left")
    return with_known.withColumn("is_unknown", F.coalesce("is_unknown", F.lit(True)))


def item_counts(item_windows: DataFrame) -> DataFrame:
    """Counts of events by item, of new items, and of items that the vocabulary lacks; and the squares that tell how few items most events
    are of."""
    num = F.col("num_events")
    counted = [
        ("item_mix", F.col("item_id"), num),
        (TOTALS, F.when(F.col("is_new"), F.lit(NEW_ITEMS)), num),
        (TOTALS, F.when(F.col("is_unknown"), F.lit(UNKNOWN_ITEMS)), num),
        (TOTALS, F.lit(ITEM_SQUARES), num * num),
    ]
    of_item = [
        F.struct(F.lit(measure).alias("measure"), which.alias("category"), number.alias("num"))
        for measure, which, number in counted
    ]
    each = item_windows.select("window", F.explode(F.array(*of_item)).alias("of"))
    known = each.select("of.measure", "window", "of.category", "of.num").where(F.col("category").isNotNull())
    return _numbered(known.groupBy("measure", "window", "category").agg(F.sum("num").alias("num")))


def session_lengths(sessions: DataFrame, calendar: Calendar) -> DataFrame:
    """Counts of sessions that began in a window, by classes of their number of events."""
    first_month = calendar.first_day.replace(day=1)
    recent = sessions.where(F.col("started_month") >= F.lit(first_month))
    length = F.col("num_events") + F.col("num_collapsed")
    least = F.lit(SESSION_LENGTHS[0])
    for number in SESSION_LENGTHS[1:]:
        least = F.when(length >= number, F.lit(number)).otherwise(least)
    classed = _in_windows(recent, calendar, F.to_date("started_at")).select(
        "window", least.cast("string").alias("category")
    )
    return _of_categories(classed, "session_length")


def score_distribution(predictions: DataFrame, calendar: Calendar) -> DataFrame:
    """Counts of users by the chance of their first prediction, in classes from one power of two to the next."""
    first = predictions.where(F.col("rank") == 1)
    halvings = F.greatest(F.lit(0), F.least(F.floor(-F.log2("probability")), F.lit(_LEAST_CHANCE_LOG2)))
    chance = F.coalesce(halvings, F.lit(_LEAST_CHANCE_LOG2)).cast("string")
    classed = _in_windows(first, calendar, F.col("as_of_date")).select("window", chance.alias("category"))
    return _of_categories(classed, "score_distribution")


def hits(predictions: DataFrame, events: DataFrame, calendar: Calendar, k: int, within_days: int) -> DataFrame:
    """Sums over users of trials and hits. A trial is a user with predictions as of a day of the window and an event within `within_days` days
    after; a hit where the first such event (ties by event_id) is of an item among the first `k`."""
    followed = calendar.moved_back(within_days)
    as_of_dates = [
        followed.days(window)[0] + timedelta(days=day)
        for window in range(calendar.num_references + 1)
        for day in range(calendar.window_days)
    ]
    on_dates = _in_windows(predictions, followed, F.col("as_of_date")).where(F.col("rank") <= k)
    lists = on_dates.groupBy("as_of_date", "window", "user_id").agg(F.collect_set("item_id").alias("predicted"))
    after = events.where(F.col("event_date").between(F.lit(followed.first_day), F.lit(calendar.as_of)))
    followed_dates = F.filter(
        F.array(*[F.lit(day) for day in as_of_dates]),
        lambda day: F.datediff("event_date", day).between(1, within_days),
    )
    next_events = (
        after.select("user_id", "item_id", "event_time", "event_id", F.explode(followed_dates).alias("as_of_date"))
        .groupBy("as_of_date", "user_id")
        .agg(F.min_by("item_id", F.struct("event_time", "event_id")).alias("item_id"))
    )
    # A user without an event after has no trial, and one without predictions neither.
    trials = lists.join(next_events, ["as_of_date", "user_id"], "inner")
    of_users = trials.groupBy("window", "user_id").agg(
        F.count("*").alias("t"), F.count_if(F.array_contains("predicted", F.col("item_id"))).alias("h")
    )
    sums = {
        "num_users": F.count("*"),
        "trials": F.sum("t"),
        "hits": F.sum("h"),
        "trials_squared": F.sum(F.col("t") * F.col("t")),
        "hits_squared": F.sum(F.col("h") * F.col("h")),
        "hits_trials": F.sum(F.col("h") * F.col("t")),
    }
    numbers = of_users.groupBy("window").agg(*(total.alias(name) for name, total in sums.items()))
    return _long(numbers, HITS, list(sums))


def _in_windows(rows: DataFrame, calendar: Calendar, day: Column) -> DataFrame:
    """The rows whose day lies in a window of the calendar, with its number."""
    days_ago = F.datediff(F.lit(calendar.as_of), day)
    window = F.floor(days_ago / calendar.period_days).cast("int")
    is_inside = (days_ago % calendar.period_days < calendar.window_days) & day.between(
        F.lit(calendar.first_day), F.lit(calendar.as_of)
    )
    return rows.where(is_inside).withColumn("window", window)


def _of_categories(classed: DataFrame, measure: str) -> DataFrame:
    counts = classed.groupBy("window", "category").agg(F.count("*").alias("num"))
    return _numbered(counts.withColumn("measure", F.lit(measure)))


def _long(numbers: DataFrame, measure: str, names: Sequence[str]) -> DataFrame:
    """One row a number of each window."""
    pairs = [F.struct(F.lit(name).alias("category"), F.col(f"`{name}`").alias("num")) for name in names]
    counts = numbers.select("window", F.explode(F.array(*pairs)).alias("count"))
    return _numbered(counts.select(F.lit(measure).alias("measure"), "window", "count.category", "count.num"))


def _numbered(counts: DataFrame) -> DataFrame:
    return counts.select("measure", "window", "category", F.col("num").cast("bigint").alias("num"))
