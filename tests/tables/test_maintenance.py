"""Files joined and removed: no row changes, and what is needed stays."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.schemas import SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.maintenance import (
    data_files,
    files_of_version,
    join_small_files,
    keep_log,
    readable_versions,
    remove_old_files,
)
from llm_spark.tables.warehouse import Warehouse

MIB = 2**20


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "ware [house] é"))


def items(spark: SparkSession, num: int, num_files: int) -> DataFrame:
    rows = spark.range(num).select(
        (F.col("id") + 2).cast("int").alias("token"),
        F.concat(F.lit("i"), F.col("id")).alias("item_id"),
        F.lit(1).cast("long").alias("num_events"),
        F.lit(datetime(2025, 1, 1)).alias("first_seen_at"),
    )
    return rows.repartition(num_files)


def versions(warehouse: Warehouse) -> list[int]:
    path = warehouse.path(VOCABULARY)
    on_disk = {file.name for file in data_files(warehouse.spark, path)}
    return readable_versions(warehouse.log(VOCABULARY), files_of_version(warehouse.spark, path), on_disk)


def tokens(warehouse: Warehouse, version: int | None = None) -> list[int]:
    return sorted(row[0] for row in warehouse.read(VOCABULARY, version).select("token").collect())


def test_small_files_are_joined_without_changing_a_row_and_a_second_time_there_is_nothing_to_join(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.replace(VOCABULARY, items(spark, 100, 5), {})
    path = warehouse.path(VOCABULARY)
    assert join_small_files(spark, path, VOCABULARY, 128 * MIB) == (5, 1)
    assert tokens(warehouse) == list(range(2, 102))
    version = warehouse.version(VOCABULARY)
    assert join_small_files(spark, path, VOCABULARY, 128 * MIB) == (0, 0)
    assert warehouse.version(VOCABULARY) == version


def test_a_few_small_files_are_left_alone(warehouse: Warehouse, spark: SparkSession) -> None:
    warehouse.replace(VOCABULARY, items(spark, 100, 3), {})
    assert join_small_files(spark, warehouse.path(VOCABULARY), VOCABULARY, 128 * MIB) == (0, 0)


def test_removal_spares_the_newest_version_and_what_is_kept_and_can_be_repeated(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    path = warehouse.path(VOCABULARY)
    for num in (10, 20, 30):
        warehouse.replace(VOCABULARY, items(spark, num, 2), {})
    first, second, third = range(1, 4)
    assert versions(warehouse) == [0, first, second, third]
    (Path(path) / "part-00000-left-by-a-killed-writer.snappy.parquet").write_bytes(b"half")
    keep = files_of_version(spark, path, first)
    assert remove_old_files(spark, path, 1, keep) == 0, "nothing is older than an hour"
    assert remove_old_files(spark, path, 0, keep) == 3, "two files of the second version and the killed writer's"
    assert tokens(warehouse, first) == list(range(2, 12))
    assert tokens(warehouse) == list(range(2, 32))
    found = versions(warehouse)
    assert {0, first, third} <= set(found)
    assert second not in found
    assert remove_old_files(spark, path, 0, keep) == 0
    assert remove_old_files(spark, path, 0, ()) == 2
    assert first not in versions(warehouse)
    assert tokens(warehouse) == list(range(2, 32))


def test_sequences_are_written_and_joined_in_row_groups_that_the_reader_likes(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    rows = spark.range(40_000).select(
        F.col("id").cast("string").alias("sequence_id"),
        F.lit("u").alias("user_id"),
        F.lit("train").alias("split"),
        F.array(F.lit(2), F.lit(3)).alias("tokens"),
        F.array(F.lit(2), F.lit(2)).alias("event_types"),
        F.array(F.lit(None), F.lit(None)).alias("values"),
        F.array(F.lit(0)).alias("session_starts"),
        F.array(F.col("id"), F.col("id")).alias("event_times"),
        F.lit(1).alias("first_target"),
        F.lit(datetime(2025, 1, 1)).alias("started_at"),
        *[F.lit(None).alias(name) for name in SEQUENCES.added_later],
    )

    def groups() -> list[list[int]]:
        current = files_of_version(spark, path)
        files = [pq.ParquetFile(file).metadata for file in Path(path).rglob("*.parquet") if file.name in current]
        return [[file.row_group(place).num_rows for place in range(file.num_row_groups)] for file in files]

    path = warehouse.path(SEQUENCES)
    warehouse.replace(SEQUENCES, rows.coalesce(1), {})
    assert groups() == [[16_384, 16_384, 7_232]]
    warehouse.replace(SEQUENCES, rows.repartition(4), {})
    assert len(groups()) == 4
    assert join_small_files(spark, path, SEQUENCES, 128 * MIB) == (4, 1)
    assert groups() == [[16_384, 16_384, 7_232]]
    assert spark.conf.get("parquet.block.row.count.limit", None) is None


def test_no_dictionary_is_made_of_what_seldom_repeats(warehouse: Warehouse, spark: SparkSession) -> None:
    values = {
        "session_id": "concat('s', id)",
        "started_month": "DATE'2025-01-01'",
        "user_bucket": "0",
        "event_times": "array(timestamp_micros(id), timestamp_micros(id + 1))",
        "item_ids": "array('a', 'b')",
    }
    columns = [F.expr(values.get(name, "NULL")).alias(name) for name in SESSIONS.schema.names]
    rows = spark.range(100).select(columns).coalesce(1)

    def have_dictionaries() -> dict[str, bool]:
        current = files_of_version(spark, warehouse.path(SESSIONS))
        (file,) = [file for file in Path(warehouse.path(SESSIONS)).rglob("*.parquet") if file.name in current]
        group = pq.ParquetFile(file).metadata.row_group(0)
        leaves = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
        names = ("session_id", "event_times.list.element", "item_ids.list.element")
        return {name: leaves[name].has_dictionary_page for name in names}

    sought = {"session_id": False, "event_times.list.element": False, "item_ids.list.element": True}
    warehouse.replace(SESSIONS, rows, {})
    assert have_dictionaries() == sought
    warehouse.replace_where(SESSIONS, rows, "user_bucket = 0", {})
    assert have_dictionaries() == sought
    assert {name for name in spark.conf.getAll if "dictionary" in name} == set()


def test_a_table_of_which_models_pin_versions_never_forgets_one_by_itself(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.replace(VOCABULARY, items(spark, 1, 1), {})
    path = warehouse.path(VOCABULARY)
    assert not keep_log(spark, path)
    spark.sql(f"ALTER TABLE delta.`{path}` UNSET TBLPROPERTIES ('delta.logRetentionDuration')")
    assert keep_log(spark, path)
    assert warehouse.log(VOCABULARY).properties["delta.logRetentionDuration"] == "interval 36500 days"
