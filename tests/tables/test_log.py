"""What the log says of a table: which commits changed its rows."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession

from llm_spark.errors import UserError
from llm_spark.schemas import VOCABULARY
from llm_spark.tables.maintenance import files_of_version
from llm_spark.tables.spark_settings import settings
from llm_spark.tables.warehouse import Warehouse


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "ware [house] é"))


def items(spark: SparkSession, *names: str) -> DataFrame:
    return spark.createDataFrame(
        [(2 + place, name, 1, datetime(2025, 1, 1)) for place, name in enumerate(names)], VOCABULARY.schema
    )


def test_compaction_properties_and_an_insert_of_nothing_raise_the_version_and_not_the_data_version(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.replace(VOCABULARY, items(spark, "a", *"bcdefghijk").repartition(2), {"from": 1})
    written = warehouse.version(VOCABULARY)
    path = warehouse.path(VOCABULARY)
    DeltaTable.forPath(spark, path).optimize().executeCompaction()
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('delta.logRetentionDuration' = 'interval 9 days')")
    warehouse.insert_new(VOCABULARY, items(spark, "a"), "item_id")
    assert warehouse.version(VOCABULARY) >= written + 2
    assert warehouse.data_version(VOCABULARY) == written
    assert warehouse.origin(VOCABULARY) == {"from": 1}
    warehouse.insert_new(VOCABULARY, items(spark, "z"), "item_id")
    assert warehouse.data_version(VOCABULARY) == warehouse.version(VOCABULARY)
    assert warehouse.data_version(VOCABULARY, written + 1) == written
    assert warehouse.origin(VOCABULARY) is None


def test_a_commit_that_notes_an_origin_counts_also_where_no_row_had_to_change(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.replace(VOCABULARY, items(spark, "a"), {"from": 1})
    with settings(spark, {"spark.databricks.delta.commitInfo.userMetadata": '{"from": 2}'}):
        spark.sql(f"ALTER TABLE delta.`{warehouse.path(VOCABULARY)}` SET TBLPROPERTIES ('a' = 'b')")
    assert warehouse.origin(VOCABULARY) == {"from": 2}
    assert warehouse.data_version(VOCABULARY) == warehouse.version(VOCABULARY)


def test_files_removed_since_a_time_are_told_as_far_back_as_the_log_remembers(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    files = []
    for name in "abc":
        warehouse.replace(VOCABULARY, items(spark, name).coalesce(1), {})
        files.append(files_of_version(spark, warehouse.path(VOCABULARY)))
    log = warehouse.log(VOCABULARY)
    newest = log.commit(log.version)
    assert newest is not None
    assert newest.made_ms is not None
    assert log.files_removed_since(0) == files[0] | files[1]
    assert log.files_removed_since(newest.made_ms) == files[1]
    assert log.files_removed_since(newest.made_ms + 1) == set()
    (Path(warehouse.path(VOCABULARY)) / "_delta_log" / f"{log.version - 1:020}.json").unlink()
    assert log.files_removed_since(0) == files[1]


def test_a_clock_that_was_moved_back_hides_no_file_that_was_removed_before(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.replace(VOCABULARY, items(spark, "a").coalesce(1), {})
    first = files_of_version(spark, warehouse.path(VOCABULARY))
    for name in "bc":
        warehouse.replace(VOCABULARY, items(spark, name).coalesce(1), {})
    log = warehouse.log(VOCABULARY)
    removing, newest = log.commit(log.version - 1), Path(warehouse.path(VOCABULARY), "_delta_log")
    assert removing is not None
    since = removing.made_ms
    assert since is not None
    file = newest / f"{log.version:020}.json"
    file.write_text(re.sub(r'"timestamp":\d+', '"timestamp":1000', file.read_text()))
    (newest / f".{file.name}.crc").unlink()
    assert warehouse.log(VOCABULARY).files_removed_since(since) == first


def test_the_data_version_of_a_missing_table_names_the_stage_that_writes_it(warehouse: Warehouse) -> None:
    with pytest.raises(UserError, match="run `llm-spark sequences` first"):
        warehouse.data_version(VOCABULARY)
