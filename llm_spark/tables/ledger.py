"""Writing the ledger of raw files."""

from __future__ import annotations

from collections.abc import Sequence

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.schemas import INGESTED_FILES
from llm_spark.tables.warehouse import Warehouse, conformed

_KEY = "source_file"


def enter(warehouse: Warehouse, rows: DataFrame, gone: Sequence[str] = ()) -> None:
    """Insert the rows of files, or put them in place of theirs of before, and take those of the files `gone` out, in one commit."""
    if not gone:
        warehouse.upsert(INGESTED_FILES, rows, _KEY)
        return
    leaving = warehouse.spark.createDataFrame([(name,) for name in gone], f"{_KEY} string")
    entering = conformed(rows, INGESTED_FILES).withColumn("is_gone", F.lit(False))
    both = entering.unionByName(leaving.withColumn("is_gone", F.lit(True)), allowMissingColumns=True)
    values: dict[str, str | Column] = {name: F.col(f"new.{name}") for name in INGESTED_FILES.schema.names}
    target = DeltaTable.forPath(warehouse.spark, warehouse.path(INGESTED_FILES)).alias("old")
    merge = target.merge(both.alias("new"), f"old.{_KEY} = new.{_KEY}").whenMatchedDelete("new.is_gone")
    merge.whenMatchedUpdate(set=values).whenNotMatchedInsert("NOT new.is_gone", values).execute()
