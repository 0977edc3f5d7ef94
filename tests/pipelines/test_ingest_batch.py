"""Which rows of `events` gave way to whole records."""

from __future__ import annotations

from datetime import date, timedelta

from pyspark.sql import Row, SparkSession

from llm_spark.pipelines.ingest_batch import these_events

SCHEMA = "event_date date, event_id string, source_file string"


def event(number: int, file: str) -> Row:
    day = date(2025, 1, 1) + timedelta(days=number % 30)
    return Row(event_date=day, event_id=f"{number:032x}", source_file=f"file:/logs/{file}")


def test_thousands_of_events_are_found_by_date_id_and_file(spark: SparkSession) -> None:
    wanted = [event(number, f"{number}.csv") for number in range(3_000)]
    of_another_day = (date(2026, 1, 1), *tuple(wanted[0])[1:])
    others = [tuple(event(1, "2.csv")), tuple(event(3_000, "1.csv")), of_another_day]
    stored = spark.createDataFrame([*map(tuple, wanted[:2]), *others], SCHEMA)
    found = stored.where(these_events(wanted)).collect()
    assert sorted(row["event_id"] for row in found) == [wanted[0]["event_id"], wanted[1]["event_id"]]
