"""Lists of items that a business keeps: a table of the warehouse, or files of its own."""

from __future__ import annotations

import re

from delta.tables import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.errors import UsageError
from llm_spark.tables.raw import exists, java_message
from llm_spark.tables.warehouse import Warehouse


def item_list(warehouse: Warehouse, place: str, setting: str) -> DataFrame:
    """The distinct item ids of a list, in a column item_id, as text.

    `place` is the name of a table in the warehouse, or a path below it, or any other path, looked for in this order: Delta, CSV with a header
    (its name ends in .csv or .csv.gz), or else Parquet. UsageError, naming the `setting`, where there is no such list, it cannot be read, or it
    has no column item_id.
    """
    try:
        path = _located(warehouse, place)
    except Exception as error:  # no file system answers to its scheme, or the one that does refuses
        raise UsageError(f"{setting} is '{place}', which cannot be looked for: {java_message(error)}") from error
    if path is None:
        raise UsageError(
            f"{setting} is '{place}': no table of the warehouse '{warehouse.root}' has that name, and no file is at that path"
        )
    try:
        rows = _read(warehouse, path)
    except Exception as error:
        told = java_message(error)
        raise UsageError(f"{setting} is '{place}', which cannot be read as Delta, CSV or Parquet: {told}") from error
    if "item_id" not in rows.columns:
        raise UsageError(
            f"{setting} is '{place}', which has no column item_id: its columns are {', '.join(rows.columns)}"
        )
    ids = rows.select(F.col("item_id").cast("string"))
    return ids.where(F.col("item_id").isNotNull()).distinct()


def _located(warehouse: Warehouse, place: str) -> str | None:
    is_absolute = bool(re.match(r"/|[a-zA-Z][\w+.-]*:", place))
    below = [] if is_absolute else [f"{warehouse.root}/tables/{place}", f"{warehouse.root}/{place}"]
    return next((path for path in [*below, place] if exists(warehouse.spark, path)), None)


def _read(warehouse: Warehouse, path: str) -> DataFrame:
    if DeltaTable.isDeltaTable(warehouse.spark, path):
        return warehouse.spark.read.format("delta").load(path)
    if re.search(r"[.]csv([.]gz)?/?$", path):
        return warehouse.spark.read.csv(path, header=True)
    return warehouse.spark.read.parquet(path)
