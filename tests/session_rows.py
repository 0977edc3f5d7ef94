"""Rows of the sessions table from what matters in a test."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pyspark.sql import DataFrame, SparkSession

from llm_spark.schemas import SESSIONS


def session_row(
    session_id: str,
    user_id: str,
    times: Sequence[datetime],
    items: Sequence[str],
    types: Sequence[str],
    values: Sequence[float | None],
) -> tuple:
    """One row in the columns of schemas.SESSIONS, in bucket 0."""
    named = {
        "session_id": session_id,
        "user_id": user_id,
        "session_key": None,
        "user_bucket": 0,
        "started_month": times[0].date().replace(day=1),
        "started_at": times[0],
        "ended_at": times[-1],
        "num_events": len(times),
        "num_collapsed": 0,
        "item_ids": list(items),
        "event_types": list(types),
        "event_times": list(times),
        "event_values": list(values),
        "event_features": None,
    }
    return tuple(named[name] for name in SESSIONS.schema.names)


def sessions_frame(spark: SparkSession, rows: Sequence[tuple]) -> DataFrame:
    return spark.createDataFrame(list(rows), SESSIONS.schema)
