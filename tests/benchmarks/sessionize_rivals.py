"""Other ways from the same events table to the same sessions. Each writes what it made as Parquet or Delta into `out`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

COLUMNS = ["user_id", "session_key", "event_time", "event_id", "item_id", "event_type", "value"]


def bare_shuffle(events: DataFrame, out: Path, num_partitions: int) -> None:
    """Nothing but what any sessionizer must do: bring each user's rows together in time order, and write them."""
    by_user = events.select(COLUMNS).repartition(num_partitions, "user_id")
    ordered = by_user.sortWithinPartitions("user_id", "event_time", "event_id")
    ordered.write.format("delta").mode("overwrite").save(str(out))


def lag_window(events: DataFrame, out: Path, gap_seconds: int) -> None:
    """The way of every tutorial: lag, a running sum of the gaps, collect_list."""
    by_time = Window.partitionBy("user_id").orderBy("event_time", "event_id")
    before = F.lag("event_time").over(by_time)
    pause = F.unix_micros("event_time") - F.unix_micros(before)
    opens = F.when(before.isNull() | (pause > gap_seconds * 1_000_000), 1).otherwise(0)
    numbered = events.select(COLUMNS).withColumn("opens", opens)
    numbered = numbered.withColumn("session", F.sum("opens").over(by_time))
    _write_spark(numbered.groupBy("user_id", "session").agg(*_session_columns()).drop("session"), out)


def session_window(events: DataFrame, out: Path, gap_seconds: int) -> None:
    """Spark's own session_window; its gap is exclusive, and event times are whole milliseconds."""
    window = F.session_window("event_time", f"{gap_seconds * 1000 + 1} milliseconds")
    _write_spark(events.select(COLUMNS).groupBy("user_id", window).agg(*_session_columns()), out)


def _session_columns() -> list[Column]:
    return [
        F.min("event_time").alias("started_at"),
        F.max("event_time").alias("ended_at"),
        F.count("*").alias("num_events"),
        F.collect_list("item_id").alias("item_ids"),
        F.collect_list("event_type").alias("event_types"),
        F.collect_list("event_time").alias("event_times"),
        F.collect_list(F.struct("value")).alias("event_values"),  # a bare null would be left out
    ]


def _write_spark(sessions: DataFrame, out: Path) -> None:
    kept = ["user_id", "started_at", "ended_at", "num_events", "item_ids", "event_types", "event_times", "event_values"]
    sessions.select(kept).write.format("delta").mode("overwrite").save(str(out))


def duck(files: list[str], out: Path, gap_seconds: int, num_threads: int, memory: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"threads": num_threads, "memory_limit": memory, "temp_directory": str(out / "spill")}
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(
            f"""
            COPY (
                WITH marked AS (
                    SELECT *, coalesce(event_time - lag(event_time) OVER by_time > INTERVAL {gap_seconds} SECOND, true) AS opens
                    FROM read_parquet({files!r}, hive_partitioning = false)
                    WINDOW by_time AS (PARTITION BY user_id ORDER BY event_time, event_id)
                ),
                numbered AS (
                    SELECT *, sum(opens::INT) OVER (PARTITION BY user_id ORDER BY event_time, event_id ROWS UNBOUNDED PRECEDING) AS session
                    FROM marked
                )
                SELECT user_id, min(event_time) AS started_at, max(event_time) AS ended_at, count(*) AS num_events,
                    list(item_id ORDER BY event_time, event_id) AS item_ids, list(event_type ORDER BY event_time, event_id) AS event_types,
                    list(event_time ORDER BY event_time, event_id) AS event_times, list(value ORDER BY event_time, event_id) AS event_values
                FROM numbered GROUP BY user_id, session
            ) TO '{out}/sessions.parquet' (FORMAT parquet, COMPRESSION snappy)
            """
        )


def polars(files: list[str], out: Path, gap_seconds: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    events = pl.scan_parquet(files).select(COLUMNS).sort("user_id", "event_time", "event_id")
    opens = (pl.col("user_id") != pl.col("user_id").shift()) | (
        pl.col("event_time").diff().dt.total_microseconds() > gap_seconds * 1_000_000
    )
    sessions = (
        events.with_columns(opens.fill_null(True).cum_sum().alias("session"))
        .group_by("session", maintain_order=False)
        .agg(
            pl.col("user_id").first(),
            pl.col("event_time").min().alias("started_at"),
            pl.col("event_time").max().alias("ended_at"),
            pl.len().alias("num_events"),
            pl.col("item_id").alias("item_ids"),
            pl.col("event_type").alias("event_types"),
            pl.col("event_time").alias("event_times"),
            pl.col("value").alias("event_values"),
        )
    )
    sessions.drop("session").sink_parquet(out / "sessions.parquet", compression="snappy")


def fingerprint(sessions: str, bot: str) -> tuple[int, int, int, int]:
    """By DuckDB, over the files that match `sessions`: people's sessions, their events, a sum of hashes of all they hold; the bot's events.

    The bot's sessions are left out, since only ours are cut at a maximal number of events. The order of the items is, too: collect_list
    promises none, and the lists of lag_window were seen out of order.
    """
    query = f"""
        SELECT count(*) FILTER (user_id <> '{bot}'), (sum(num_events) FILTER (user_id <> '{bot}'))::BIGINT,
            (sum(hash(user_id, epoch_us(started_at), epoch_us(ended_at), num_events::BIGINT, array_to_string(list_sort(item_ids), ' ')) % 1000003)
                FILTER (user_id <> '{bot}'))::BIGINT,
            coalesce(sum(num_events) FILTER (user_id = '{bot}'), 0)::BIGINT
        FROM {sessions}
        """
    with duckdb.connect() as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row  # type: ignore[return-value]
