"""Small logs full of ties, gaps and late arrivals, and DuckDB's own way from events to sessions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import SessionizeConfig
from llm_spark.schemas import EVENTS
from llm_spark.tables.warehouse import Warehouse


@dataclass(frozen=True)
class LoggedEvent:
    """`night`: when it arrives. Its item is its id, so that a session's items tell its events."""

    event_id: str
    user_id: str
    at: datetime
    session_key: str | None = None
    night: int = 0


def random_log(seed: int, num_users: int, num_nights: int, late_share: float = 0.15) -> list[LoggedEvent]:
    """Each user's events on a grid of 10 s around the turn of a month; most arrive the first night, the rest late or in time order."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        start = datetime(2025, 1 + user % 4, 28) - timedelta(seconds=int(random.integers(0, 400)))
        num = int(random.integers(1, 40))
        times = np.sort(random.integers(0, 90, num))
        in_order = user % 3 == 0
        for place, tick in enumerate(times):
            late = place / num > 1 - late_share if in_order else random.random() < late_share
            night = 0
            if late:
                night = 1 + (
                    place % num_nights
                    if not in_order
                    else min(num_nights - 1, int((place / num - 1 + late_share) / late_share * num_nights))
                )
            key = [None, "a", "b"][int(random.integers(0, 3))]
            # Ids in an order of their own, so that ties are decided by them and not by arrival.
            event_id = f"{random.integers(0, 2**60):015x}-{user}-{place}"
            events.append(LoggedEvent(event_id, f"user {user}", start + timedelta(seconds=10 * int(tick)), key, night))
    return events


def events_frame(spark: SparkSession, events: list[LoggedEvent]) -> DataFrame:
    rows = [
        (e.event_id, e.user_id, e.event_id, "view", e.at, 1.0, e.session_key, None, e.at.date(), "f", e.at, "r")
        for e in events
    ]
    return spark.createDataFrame(rows, EVENTS.schema)


def arrive(warehouse: Warehouse, events: list[LoggedEvent]) -> None:
    """Add the events as a night of ingest does: rows are appended, nothing is rewritten."""
    warehouse.append(EVENTS, events_frame(warehouse.spark, events), f"night of {events[0].event_id}")


_REFERENCE = """
WITH RECURSIVE
ordered AS (
    SELECT *, row_number() OVER (PARTITION BY user_id, session_key ORDER BY event_time, event_id) AS n FROM log
),
walk AS (
    SELECT user_id, session_key, n, event_time, event_id, 1 AS session, event_time AS began_at, 1 AS num FROM ordered WHERE n = 1
    UNION ALL
    SELECT o.user_id, o.session_key, o.n, o.event_time, o.event_id,
        w.session + CASE WHEN stays THEN 0 ELSE 1 END,
        CASE WHEN stays THEN w.began_at ELSE o.event_time END,
        CASE WHEN stays THEN w.num + 1 ELSE 1 END
    FROM walk AS w
    JOIN ordered AS o ON o.user_id = w.user_id AND o.session_key IS NOT DISTINCT FROM w.session_key AND o.n = w.n + 1,
    LATERAL (SELECT w.num < {max_events} AND (o.session_key IS NOT NULL OR (
        o.event_time - w.event_time <= INTERVAL {gap} SECOND
        AND o.event_time - w.began_at <= INTERVAL {length} SECOND
        AND ({no_day_cut} OR date_trunc('day', o.event_time + INTERVAL ({offset}) MINUTE)
            = date_trunc('day', w.event_time + INTERVAL ({offset}) MINUTE))
    )) AS stays)
)
SELECT substr(sha256(concat(user_id, chr(31), coalesce(session_key, ''), chr(31), first(event_id ORDER BY n))), 1, 32) AS session_id,
    user_id, session_key, min(event_time) AS started_at, max(event_time) AS ended_at, count(*) AS num_events, list(event_id ORDER BY n) AS item_ids
FROM walk GROUP BY user_id, session_key, session
"""


def reference_sessions(
    events: list[LoggedEvent], config: SessionizeConfig, by_key: bool, offset_minutes: int = 0
) -> set[tuple]:
    """The sessions as DuckDB walks to them event by event. `offset_minutes`: of the zone of day_cut, from UTC."""
    log = pa.table(
        {
            "event_id": [e.event_id for e in events],
            "user_id": [e.user_id for e in events],
            "session_key": pa.array([e.session_key if by_key else None for e in events], pa.string()),
            "event_time": pa.array([e.at for e in events], pa.timestamp("us")),
        }
    )
    query = _REFERENCE.format(
        max_events=config.max_events,
        gap=config.gap_seconds,
        length=config.max_length_seconds,
        no_day_cut=config.day_cut is None,
        offset=offset_minutes,
    )
    with duckdb.connect() as connection:
        connection.register("log", log)
        rows = connection.execute(query).fetchall()
    return {(*row[:-1], tuple(row[-1])) for row in rows}


def found_sessions(sessions: DataFrame) -> set[tuple]:
    """The rows of the table in the columns of the reference."""
    columns = ["session_id", "user_id", "session_key", "started_at", "ended_at", "num_events", "item_ids"]
    rows = sessions.select(columns).collect()
    assert len(rows) == len({row["session_id"] for row in rows})
    months = sessions.where(F.trunc("started_at", "month") != F.col("started_month")).count()
    assert months == 0
    return {(*row[:-1], tuple(row[-1])) for row in rows}
