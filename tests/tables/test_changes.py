"""What came into a table between two versions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.schemas import EVENTS, VOCABULARY
from llm_spark.tables.changes import additions, changed_parts, read_additions
from llm_spark.tables.warehouse import Warehouse


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "ware [house] {a,b} é"))


def items(spark: SparkSession, *names: str) -> DataFrame:
    rows = [(2 + place, name, 1, datetime(2025, 1, 1)) for place, name in enumerate(names)]
    return spark.createDataFrame(rows, VOCABULARY.schema)


def test_rows_that_were_appended_are_read_again_whatever_the_folder_is_called(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.append(VOCABULARY, items(spark, "a"), "1")
    before = warehouse.version(VOCABULARY)
    warehouse.append(VOCABULARY, items(spark, "b", "c"), "2")
    warehouse.append(VOCABULARY, items(spark, "d"), "3")
    found = additions(warehouse, VOCABULARY, before, warehouse.version(VOCABULARY))
    assert found is not None
    assert found.num_rows == 3
    rows = read_additions(warehouse, VOCABULARY, found, ["item_id"])
    assert rows is not None
    assert sorted(row["item_id"] for row in rows.collect()) == ["b", "c", "d"]


def test_a_property_is_no_change_and_a_column_is_one_that_cannot_be_told(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.append(VOCABULARY, items(spark, "a"), "1")
    table, before = f"delta.`{warehouse.path(VOCABULARY)}`", warehouse.version(VOCABULARY)
    spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.logRetentionDuration' = 'interval 9 days')")
    warehouse.append(VOCABULARY, items(spark, "b"), "2")
    found = additions(warehouse, VOCABULARY, before, warehouse.version(VOCABULARY))
    assert found is not None
    assert found.num_rows == 1
    parts = changed_parts(warehouse, VOCABULARY, before, warehouse.version(VOCABULARY))
    assert parts is not None
    spark.sql(f"ALTER TABLE {table} ADD COLUMN more string")
    assert additions(warehouse, VOCABULARY, before, warehouse.version(VOCABULARY)) is None
    assert changed_parts(warehouse, VOCABULARY, before, warehouse.version(VOCABULARY)) is None


def test_rows_that_were_removed_cannot_be_told_as_additions(warehouse: Warehouse, spark: SparkSession) -> None:
    warehouse.append(VOCABULARY, items(spark, "a", "b"), "1")
    before = warehouse.version(VOCABULARY)
    warehouse.delete(VOCABULARY, F.col("item_id") == "a")
    assert additions(warehouse, VOCABULARY, before, warehouse.version(VOCABULARY)) is None


def test_a_state_that_the_log_has_forgotten_cannot_be_compared_with(warehouse: Warehouse, spark: SparkSession) -> None:
    def event(day: int) -> DataFrame:
        at = datetime(2025, 1, day)
        row = (f"e{day}", "u", "i", "view", at, None, None, {}, at.date(), "file", at, "run")
        return spark.createDataFrame([row], EVENTS.schema)

    for day in (1, 2, 3):
        warehouse.append(EVENTS, event(day), f"{day}")
    newest = warehouse.version(EVENTS)
    found = changed_parts(warehouse, EVENTS, newest - 1, newest)
    assert found is not None
    assert (found.version_before, found.parts) == (newest - 1, {("2025-01-03",)})
    folder = Path(warehouse.path(EVENTS), "_delta_log")
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.forTable(  # type: ignore[union-attr]
        spark._jsparkSession, warehouse.path(EVENTS)
    ).checkpoint()
    for version in range(newest):
        (folder / f"{version:020}.json").unlink()
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]
    assert changed_parts(warehouse, EVENTS, newest - 1, newest) is None
