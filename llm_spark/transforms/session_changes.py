"""Which sessions have come, gone or changed between two states of the table, and what that means for what was kept of their users."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.transforms.splits import ARRAYS

_WITH_NULLS = ("event_values", "event_features")


def session_changes(before: DataFrame, after: DataFrame) -> DataFrame:
    """One row a session that is in one of the two alone, or not the same in both: the columns of `after`, null where it is gone, and besides
    user_id, session_id, `num_events_before` (null where it is new) and `is_there`.

    A session that was merely written again has not changed. Each session of one matches at most one of the other.
    """
    old = before.select(
        F.col("user_id").alias("old_user_id"),
        F.col("session_id").alias("old_session_id"),
        F.col("num_events").alias("num_events_before"),
        _content(before).alias("old_content"),
    )
    new = after.withColumn("content", _content(after))
    both = new.join(old, F.col("session_id") == F.col("old_session_id"), "full_outer")
    changed = both.where(~F.col("content").eqNullSafe(F.col("old_content")))
    named = {
        "is_there": F.col("session_id").isNotNull(),
        "user_id": F.coalesce("user_id", "old_user_id"),
        "session_id": F.coalesce("session_id", "old_session_id"),
    }
    return changed.withColumns(named).drop("old_user_id", "old_session_id", "content", "old_content")


def _content(sessions: DataFrame) -> Column:
    """A hash of all that a history is made of, and of where it is null: the hash of an array passes over what is null in it."""
    present = [name for name in ARRAYS if name in sessions.columns]
    nulls = [_nulls(F.col(name), sessions.schema[name].dataType) for name in present if name in _WITH_NULLS]
    return F.xxhash64("user_id", "ended_at", *present, *nulls)


def _nulls(array: Column, kind: t.DataType) -> Column:
    assert isinstance(kind, t.ArrayType)
    if isinstance(kind.elementType, t.ArrayType):
        return F.transform(array, lambda inner: F.transform(inner, F.isnull))
    return F.transform(array, F.isnull)


def touched_users(changes: DataFrame, kept: DataFrame, asks_again: Column) -> DataFrame:
    """One row a user with changed sessions, or who `asks_again` without (a bool of `kept`): user_id, `gone_ids` (sessions that have gone or
    changed), `is_kept` (something was kept of him), and `is_replayed`: whether that is of no use.

    `kept`: rows of schemas.USER_MEMORY, whose user matches at most one. They are of use where everything that came or went stands, in the
    order of the history, after all that stays, and the window cannot reach back into the memory: no less is in it than before.
    """
    was_there = F.col("num_events_before").isNotNull()
    by_user = changes.groupBy("user_id").agg(
        F.collect_list(F.when(was_there, F.col("session_id"))).alias("gone_ids"),
        F.min(F.when(F.col("is_there"), _place("ended_at", "session_id"))).alias("first_come"),
        F.coalesce(F.sum(F.when(F.col("is_there"), F.col("num_events"))), F.lit(0)).alias("num_events_come"),
        F.coalesce(F.sum("num_events_before"), F.lit(0)).alias("num_events_gone"),
    )
    states = kept.select(
        F.col("user_id").alias("kept_user_id"),
        "session_ids",
        F.transform(F.arrays_zip("sessions_ended_at", "session_ids"), _place_of_pair).alias("window"),
        F.when(F.col("past").isNotNull(), _place("past.ended_at", "past.session_id")).alias("end_of_past"),
        asks_again.alias("asks_again"),
    )
    both = by_user.join(states, F.col("user_id") == F.col("kept_user_id"), "full_outer")
    touched = both.where(F.col("user_id").isNotNull() | F.col("asks_again"))

    def is_gone(place: Column) -> Column:
        return F.array_contains("gone_ids", place["session_id"])

    goes_from_memory = F.size(F.array_except("gone_ids", "session_ids")) > 0
    last_to_stay = F.coalesce(F.array_max(F.filter("window", lambda place: ~is_gone(place))), F.col("end_of_past"))
    first_to_go = F.array_min(F.filter("window", is_gone))
    before_what_stays = F.coalesce(F.least("first_come", first_to_go) <= last_to_stay, F.lit(False))
    shrinks = F.col("num_events_come") < F.col("num_events_gone")
    is_kept, is_changed = F.col("kept_user_id").isNotNull(), F.col("user_id").isNotNull()
    return touched.select(
        F.coalesce("user_id", "kept_user_id").alias("user_id"),
        F.coalesce("gone_ids", F.array().cast("array<string>")).alias("gone_ids"),
        is_kept.alias("is_kept"),
        (is_kept & is_changed & (goes_from_memory | before_what_stays | shrinks)).alias("is_replayed"),
    )


def _place(ended_at: str, session_id: str) -> Column:
    """Where a session stands in the order of the history."""
    return F.struct(F.col(ended_at).alias("ended_at"), F.col(session_id).alias("session_id"))


def _place_of_pair(pair: Column) -> Column:
    return F.struct(pair["sessions_ended_at"].alias("ended_at"), pair["session_ids"].alias("session_id"))


def kept_steps(states: DataFrame, num_features: int) -> DataFrame:
    """The steps of the windows, as `tokenized_steps` gives them, but for the sessions that are gone.

    `states`: rows of schemas.USER_MEMORY with the `gone_ids` of their users. The values are as the model reads them.
    """
    zipped = F.arrays_zip("tokens", "event_types", "values", "event_times")
    steps = states.select(
        "user_id",
        "gone_ids",
        "session_ids",
        "sessions_ended_at",
        "session_starts",
        "features",
        F.posexplode(zipped).alias("at", "step"),
    )
    number = F.size(F.filter("session_starts", lambda start: start <= F.col("at")))
    placed = steps.withColumn("number", number).withColumn("session_id", F.element_at("session_ids", F.col("number")))
    features = [F.slice("features", F.col("at") * num_features + 1, F.lit(num_features)).alias("features")]
    return placed.where(~F.array_contains("gone_ids", F.col("session_id"))).select(
        "user_id",
        "session_id",
        F.element_at("sessions_ended_at", F.col("number")).alias("session_ended_at"),
        (F.col("at") - F.element_at("session_starts", F.col("number"))).alias("place"),
        F.timestamp_seconds("step.event_times").alias("event_time"),
        F.col("step.tokens").alias("token"),
        F.col("step.event_types").alias("event_type"),
        F.col("step.values").alias("value"),
        *(features if num_features else []),
    )
