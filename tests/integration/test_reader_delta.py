"""The reader against Spark: a Delta version after DELETE and append gives Spark's rows at that version."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.reader import RaggedReader, Snapshot, SnapshotError
from tests.reader.tables import Row, rows_of


def events(spark: SparkSession, first: int, stop: int) -> DataFrame:
    ids = spark.range(first, stop, numPartitions=3)
    return ids.select(
        F.col("id"),
        F.expr("transform(sequence(0, cast(id % 7 as int)), i -> cast(id * 10 + i as int))").alias("tokens"),
        F.expr("if(id % 4 = 0, null, array(cast(id as float), null))").alias("values"),
        F.concat(F.lit("user "), F.col("id")).alias("name"),
    )


def rows_read(snapshot: Snapshot) -> list[Row]:
    reader = RaggedReader(snapshot, ["id", "tokens", "values", "name"], batch_rows=7)
    return sorted((row for batch in reader.epoch(0) for row in rows_of(batch)), key=lambda row: row["id"])


def as_delivered(row: Row) -> Row:
    """Spark's row as the reader states it: a null list is empty, a null float is NaN."""
    return {**row, "values": [float("nan") if value is None else value for value in row["values"] or []]}


def test_every_version_after_delete_and_append_gives_sparks_rows(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    events(spark, 0, 50).write.format("delta").save(table)
    spark.sql(f"DELETE FROM delta.`{table}` WHERE id % 3 = 1")
    events(spark, 50, 70).write.format("delta").mode("append").save(table)
    for version in range(3):
        expected = spark.read.format("delta").option("versionAsOf", version).load(table).orderBy("id").collect()
        rows = rows_read(Snapshot.of_delta(table, version))
        assert [repr(row) for row in rows] == [repr(as_delivered(row.asDict())) for row in expected]


def test_a_table_with_deletion_vectors_is_refused_until_it_is_purged(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    events(spark, 0, 30).coalesce(1).write.format("delta").option("delta.enableDeletionVectors", "true").save(table)
    spark.sql(f"DELETE FROM delta.`{table}` WHERE id = 3")
    with pytest.raises(SnapshotError, match=r"version 1 of .* has deletion vectors on 1 files.*REORG TABLE"):
        RaggedReader(Snapshot.of_delta(table), ["id"], batch_rows=1)
    spark.sql(f"REORG TABLE delta.`{table}` APPLY (PURGE)")
    assert [row["id"] for row in rows_read(Snapshot.of_delta(table))] == [i for i in range(30) if i != 3]
