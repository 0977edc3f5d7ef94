"""Events into sessions: one shuffle by user, one sort by a number, one pass of the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.config import SessionizeConfig
from llm_spark.transforms.identity import stable_id
from llm_spark.transforms.session_kernel import SECOND_BITS, SessionRules, sessionize_batches

RULES_VERSION = 2
"""Rises when the same events and settings give other sessions than before: tables made under another one are rebuilt."""

_KERNEL_OUTPUT = """user_id string, session_key string, first_event_id string, started_at timestamp, ended_at timestamp, num_events int,
item_ids array<string>, event_types array<string>, event_times array<timestamp>, event_values array<double>,
event_features array<array<double>>"""


def user_bucket(num_buckets: int) -> Column:
    return F.pmod(F.xxhash64("user_id"), F.lit(num_buckets)).cast("int")


def sessionize(
    events: DataFrame, config: SessionizeConfig, by_key: bool, feature_names: Sequence[str] = ()
) -> DataFrame:
    """Sessions of `events`, in the columns of schemas.SESSIONS, with the numbers that stand in the attributes `feature_names`.

    A pause strictly longer than `gap_seconds` opens a new session, or a change of the log's own session key (`by_key`). Events of equal
    time stand in the order of their event_id, so that a rerun is equal to the bit.
    """
    by_day = config.day_cut is not None
    rules = SessionRules(config.gap_seconds, config.max_length_seconds, config.max_events, by_key, by_day)

    def run_kernel(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return sessionize_batches(batches, rules)

    local_day = F.unix_date(F.to_date(F.from_utc_timestamp("event_time", config.day_cut or "UTC"))).alias("local_day")
    keyed = events.select(
        _sort_key(by_key).alias("sort_key"),
        "user_id",
        (F.col("session_key") if by_key else F.lit(None).cast("string")).alias("session_key"),
        "event_time",
        "event_id",
        "item_id",
        "event_type",
        "value",
        *([local_day] if by_day else []),
        *([F.array(*map(_number, feature_names)).alias("features")] if feature_names else []),
    )
    by_user = keyed.repartitionById(config.num_buckets, user_bucket(config.num_buckets))
    closed_sessions = by_user.sortWithinPartitions("sort_key").mapInArrow(run_kernel, _KERNEL_OUTPUT)
    return closed_sessions.select(
        stable_id(F.col("user_id"), F.coalesce("session_key", F.lit("")), F.col("first_event_id")).alias("session_id"),
        "user_id",
        "session_key",
        user_bucket(config.num_buckets).alias("user_bucket"),
        F.trunc("started_at", "month").alias("started_month"),
        "started_at",
        "ended_at",
        "num_events",
        F.lit(0).alias("num_collapsed"),
        "item_ids",
        "event_types",
        "event_times",
        "event_values",
        "event_features",
    )


def _sort_key(by_key: bool) -> Column:
    """A hash of the owner above the second (see session_kernel): Spark sorts by a single number in linear time."""
    owner_hash = F.xxhash64("user_id", "session_key") if by_key else F.xxhash64("user_id")
    second = F.greatest(F.lit(0), F.least(F.unix_seconds("event_time"), F.lit(2**SECOND_BITS - 1)))
    return F.shiftleft(F.shiftright(owner_hash, SECOND_BITS), SECOND_BITS).bitwiseOR(second)


def _number(attribute: str) -> Column:
    """The attribute as a finite number; null where it is none."""
    number = F.col("attributes")[attribute].try_cast("double")
    return F.when(F.abs(number) < F.lit(float("inf")), number)
