"""What is training, what validation, what test: by time, or each user's last session or last event left out.

All of it counts along a user's history: the sessions by their end (then by id), the events inside a session by time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from llm_spark.config import SequencesConfig
from llm_spark.transforms.history_kernel import BY_TIME, LEAVE_LAST_SESSION_OUT, MIN_TO_LEAVE_OUT

ARRAYS = ("item_ids", "event_types", "event_times", "event_values", "event_features")


def _history() -> WindowSpec:
    return Window.partitionBy("user_id").orderBy("ended_at", "session_id")


def _user() -> WindowSpec:
    return Window.partitionBy("user_id")


@dataclass(frozen=True)
class SplitTimes:
    """UTC, whole seconds: training ends before `train_until`, validation before `validation_until`; the rest is test."""

    train_until: datetime
    validation_until: datetime


def split_time_quantiles(sessions: DataFrame, config: SequencesConfig) -> DataFrame:
    """One row, train_until and validation_until (to the minute), so that the configured shares of the events lie after them."""
    minute = (F.unix_seconds("ended_at") / 60).cast("bigint")
    at = F.array(F.lit(1 - config.validation_fraction - config.test_fraction), F.lit(1 - config.test_fraction))
    minutes = sessions.agg(F.percentile(minute, at, F.col("num_events")).alias("minutes"))
    whole = [F.timestamp_seconds(F.floor(F.col("minutes")[place]) * 60) for place in (0, 1)]
    return minutes.select(whole[0].alias("train_until"), whole[1].alias("validation_until"))


def divided_sessions(sessions: DataFrame, split: str, times: SplitTimes | None) -> DataFrame:
    """The sessions with `train_end` and `validation_end`, places in their arrays.

    Events before `train_end` are training, from there to before `validation_end` validation, the rest test. `times` is given where the
    split is by time.
    """
    if split == BY_TIME:
        assert times is not None
        in_training = F.col("ended_at") < F.lit(times.train_until)
        in_validation = F.col("ended_at") < F.lit(times.validation_until)
    elif split == LEAVE_LAST_SESSION_OUT:
        sessions = sessions.withColumns(
            {"place": F.row_number().over(_history()), "num_sessions": F.count("*").over(_user())}
        )
        undivided = F.col("num_sessions") < MIN_TO_LEAVE_OUT
        in_training = undivided | (F.col("place") <= F.col("num_sessions") - 2)
        in_validation = undivided | (F.col("place") <= F.col("num_sessions") - 1)
    else:
        return _divided_by_event(sessions)
    whole = F.col("num_events")
    divided = sessions.withColumns(
        {
            "train_end": F.when(in_training, whole).otherwise(0),
            "validation_end": F.when(in_validation, whole).otherwise(0),
        }
    )
    return divided.drop("place", "num_sessions")


def _divided_by_event(sessions: DataFrame) -> DataFrame:
    counted = sessions.withColumns(
        {
            "num_before": F.sum("num_events").over(_history()) - F.col("num_events"),
            "num_of_user": F.sum("num_events").over(_user()),
        }
    )

    def end(num_left_out: int) -> Column:
        undivided = F.col("num_of_user") < MIN_TO_LEAVE_OUT
        kept = F.when(undivided, F.col("num_of_user")).otherwise(F.col("num_of_user") - num_left_out)
        return F.greatest(F.lit(0), F.least(F.col("num_events"), kept - F.col("num_before"))).cast("int")

    return counted.withColumns({"train_end": end(2), "validation_end": end(1)}).drop("num_before", "num_of_user")


def training_sessions(sessions: DataFrame, split: str, times: SplitTimes | None) -> DataFrame:
    """What of the sessions is training, in the columns of `sessions`; a session that is divided ends at its last training event."""
    trained = divided_sessions(sessions, split, times).where(F.col("train_end") > 0)
    if split != BY_TIME:
        first_events = {
            name: F.slice(name, F.lit(1), F.col("train_end")) for name in ARRAYS if name in sessions.columns
        }
        trained = trained.withColumns(first_events)
    return trained.withColumn("num_events", F.col("train_end")).select(*sessions.columns)


def event_places(sessions: DataFrame, split: str, times: SplitTimes | None) -> DataFrame:
    """One row an event: user_id, session_id, event_time, and the `split` in which it has to be predicted, null where in none.

    Training predicts all of its events but a user's first. Validation and test predict those that are as late as all that stands before
    them in the history and, by time, not before their split begins: sessions of one user that overlap would show them their future.
    """
    # Not the sessions' ends: a collapsed repeat may end one, and stands in no row.
    before = _history().rowsBetween(Window.unboundedPreceding, -1)
    divided = divided_sessions(sessions, split, times).withColumn(
        "latest_before", F.max(F.array_max("event_times")).over(before)
    )
    steps = divided.select(
        "user_id",
        "session_id",
        "train_end",
        "validation_end",
        "latest_before",
        F.posexplode("event_times").alias("place", "event_time"),
    )
    has_context = (F.col("place") > 0) | F.col("latest_before").isNotNull()
    is_latest = F.col("latest_before").isNull() | (F.col("event_time") >= F.col("latest_before"))

    def in_time(begins: datetime | None) -> Column:
        return is_latest if begins is None else is_latest & (F.col("event_time") >= F.lit(begins))

    train_until, validation_until = (times.train_until, times.validation_until) if times else (None, None)
    named = (
        F.when(F.col("place") < F.col("train_end"), F.lit("train"))
        .when(F.col("place") < F.col("validation_end"), F.when(in_time(train_until), F.lit("validation")))
        .otherwise(F.when(in_time(validation_until), F.lit("test")))
    )
    return steps.select("user_id", "session_id", "event_time", F.when(has_context, named).alias("split"))
