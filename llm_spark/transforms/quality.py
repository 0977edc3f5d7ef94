"""Noise taken out of sessions: what no human does set aside, repeats collapsed, outliers of values clipped.

All of it works on any subset of whole sessions, but for the limit of events a day, which must see all sessions of a user's day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.config import BotsConfig, ClipValuesConfig, SessionizeConfig
from llm_spark.transforms.collapse_kernel import collapse_batches

_SIGNIFICANT_DIGITS = 4
# 1.2533 mean absolute deviations, like 1.4826 median ones, are a standard deviation of a bell curve (Iglewicz and Hoaglin 1993).
_MEAN_DEVIATIONS_A_MEDIAN_ONE = 1.253314 / 1.482602


def cleaned_sessions(sessions: DataFrame, config: SessionizeConfig) -> DataFrame:
    """Sessions with the `reason` (and its `detail`) to set them aside, null for those to keep; the repeats of these are collapsed if so set."""
    judged = judge_sessions(sessions, config.bots)
    return collapse_repeats(judged) if config.collapse_repeats else judged


def judge_sessions(sessions: DataFrame, bots: BotsConfig) -> DataFrame:
    """Sessions with `reason`, null for those to keep, else one of schemas.SET_ASIDE_REASONS, and `detail`. Judge them before collapsing."""
    sessions, busiest_day = _with_busiest_day(sessions, bots.max_events_per_day)
    minutes = (F.unix_micros("ended_at") - F.unix_micros("started_at")) / F.lit(60_000_000)
    a_minute = F.col("num_events") / F.greatest(minutes, F.lit(1.0))
    measured = [
        ("too_fast", a_minute, bots.max_events_per_minute, "events per minute", "max_events_per_minute"),
        ("too_many_events", F.col("num_events"), bots.max_events, "events", "max_events"),
        ("too_many_events_a_day", busiest_day, bots.max_events_per_day, "events of the user on one day", "max_events_per_day"),
    ]  # fmt: skip
    verdicts = [
        F.when(
            number > F.lit(limit),
            F.struct(
                F.lit(reason).alias("reason"),
                F.format_string(f"%s {what}, more than sessionize.bots.{key} {limit:g}", _shown(number)).alias(
                    "detail"
                ),
            ),
        )
        for reason, number, limit, what, key in measured
        if limit
    ]
    verdict = F.coalesce(*verdicts, F.lit(None).cast("struct<reason: string, detail: string>"))
    judged = sessions.withColumn("_verdict", verdict)
    return judged.withColumns({"reason": F.col("_verdict.reason"), "detail": F.col("_verdict.detail")}).drop(
        "_verdict", "_busiest_day"
    )


def _shown(number: Column) -> Column:
    return F.regexp_replace(F.format_number(number.cast("double"), 1), r"\.0$", "")


def _with_busiest_day(sessions: DataFrame, limit: int) -> tuple[DataFrame, Column]:
    """Sessions with the most events that their user has on any day they touch; null below the limit."""
    if not limit:
        return sessions, F.lit(None).cast("bigint")
    days = sessions.select("session_id", "user_id", F.explode("event_times").alias("at"))
    by_session = days.groupBy("session_id", "user_id", F.to_date("at").alias("day")).agg(F.count("*").alias("events"))
    busy_days = by_session.groupBy("user_id", "day").agg(F.sum("events").alias("events")).where(F.col("events") > limit)
    # A session touches few days, and few of them are busy: at most one row a session is left.
    busy_sessions = by_session.select("session_id", "user_id", "day").join(busy_days, ["user_id", "day"], "inner")
    busiest = busy_sessions.groupBy("session_id").agg(F.max("events").alias("_busiest_day"))
    return sessions.join(busiest, "session_id", "left"), F.col("_busiest_day")


def kept_sessions(judged: DataFrame) -> DataFrame:
    return judged.where(F.col("reason").isNull()).drop("reason", "detail")


def sessions_set_aside(judged: DataFrame) -> DataFrame:
    return judged.where(F.col("reason").isNotNull())


def collapse_repeats(sessions: DataFrame) -> DataFrame:
    """Of events with the same item and type directly after one another in a session the first; num_collapsed counts the others."""
    return sessions.mapInArrow(collapse_batches, sessions.schema)


@dataclass(frozen=True)
class Bounds:
    """What values of an event type are clipped to."""

    low: float
    high: float


def fit_bounds(training_sessions: DataFrame, config: ClipValuesConfig) -> DataFrame:
    """event_type, num_values, num_outside, low, high of the values in `training_sessions`, for types with enough values that are not all equal.

    Values count to four significant digits, so that what is held in memory does not grow with the events and a rerun gives the same bounds.
    """
    zipped = F.explode(F.arrays_zip(F.col("event_types").alias("event_type"), F.col("event_values").alias("value")))
    steps = training_sessions.select(zipped.alias("step")).select("step.event_type", "step.value")
    known = steps.where(F.col("value").isNotNull())
    rounded = known.select("event_type", _rounded(F.col("value")).alias("value"))
    counts = rounded.groupBy("event_type", "value").agg(F.count("*").alias("num"))
    if config.method == "mad":
        middle = counts.groupBy("event_type").agg(F.percentile("value", F.lit(0.5), F.col("num")).alias("median"))
        apart = counts.join(middle, "event_type", "inner").withColumn("apart", F.abs(F.col("value") - F.col("median")))
        mean_apart = F.sum(F.col("apart") * F.col("num")) / F.sum("num")
        widths = apart.groupBy("event_type", "median").agg(
            F.percentile("apart", F.lit(0.5), F.col("num")).alias("mad"),
            (mean_apart * F.lit(_MEAN_DEVIATIONS_A_MEDIAN_ONE)).alias("stand_in"),
        )
        width = F.when(F.col("mad") > 0, F.col("mad")).otherwise(F.col("stand_in")) * F.lit(config.num_mads)
        bounds = widths.select(
            "event_type", (F.col("median") - width).alias("low"), (F.col("median") + width).alias("high")
        )
    else:
        ends = F.array(F.lit(config.low_quantile), F.lit(config.high_quantile))
        quantiles = counts.groupBy("event_type").agg(F.percentile("value", ends, F.col("num")).alias("ends"))
        bounds = quantiles.select("event_type", F.col("ends")[0].alias("low"), F.col("ends")[1].alias("high"))
    outside = (F.col("value") < F.col("low")) | (F.col("value") > F.col("high"))
    numbers = counts.join(bounds.where(F.col("low") < F.col("high")), "event_type", "inner")
    fitted = numbers.groupBy("event_type", "low", "high").agg(
        F.sum("num").alias("num_values"), F.sum(F.when(outside, F.col("num")).otherwise(0)).alias("num_outside")
    )
    enough = fitted.where(F.col("num_values") >= config.min_values)
    return enough.select("event_type", "num_values", "num_outside", "low", "high")


def _rounded(value: Column) -> Column:
    digits = F.lit(_SIGNIFICANT_DIGITS - 1) - F.floor(F.log10(F.abs(value)))
    # By a whole power of ten in either direction, which a double holds exactly up to 22 digits.
    up, down = F.pow(F.lit(10.0), digits), F.pow(F.lit(10.0), -digits)
    rounded = F.when(digits >= 0, F.round(value * up) / up).otherwise(F.round(value / down) * down)
    # Beyond, the power itself would be infinite. The logarithm of 0 is null.
    return F.when(F.abs(digits) <= F.lit(300), rounded).otherwise(value)


def clip_values(sessions: DataFrame, bounds: Mapping[str, Bounds]) -> DataFrame:
    """Sessions whose event_values lie within the bounds of their event type; types without bounds and missing values stay as they are."""
    if not bounds:
        return sessions
    low = F.create_map(*[F.lit(part) for name, b in sorted(bounds.items()) for part in (name, b.low)])
    high = F.create_map(*[F.lit(part) for name, b in sorted(bounds.items()) for part in (name, b.high)])

    def clipped(value: Column, kind: Column) -> Column:
        # greatest and least pass over nulls: without bounds the value stays.
        within = F.least(F.greatest(value, F.try_element_at(low, kind)), F.try_element_at(high, kind))
        return F.when(value.isNotNull(), within)

    return sessions.withColumn("event_values", F.zip_with("event_values", "event_types", clipped))
