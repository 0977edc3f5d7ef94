"""Keeping tables fit: small files joined, files that nothing needs any more removed, and which versions can still be read.

No row changes by any of it, and each step can be killed and run again: joining is one commit, and what is removed was needed by nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from llm_spark.schemas import Table
from llm_spark.tables.globs import literal
from llm_spark.tables.log import TableLog, file_name
from llm_spark.tables.spark_settings import settings

MIN_FILES_TO_JOIN = 4
"""A partition is compacted once it holds this many small files: joining two each night would rewrite what was joined the night before."""
KEEP_LOG = ("delta.logRetentionDuration", "interval 36500 days")
"""For tables of which a model pins versions: Delta forgets versions after `LOG_HOURS` otherwise, whether their files are there or not."""
LOG_HOURS = 30 * 24
_INVENTORY = "llm_spark_inventory"


@dataclass(frozen=True)
class DataFile:
    """A file in a table's folder, whether a version needs it or not."""

    path: str
    num_bytes: int
    modified_ms: int
    """Epoch milliseconds."""

    @property
    def name(self) -> str:
        return file_name(self.path)


def file_layout(spark: SparkSession, table: Table) -> AbstractContextManager[None]:
    """While the block runs, Parquet files are written in row groups of the size that the table's readers like, and without dictionaries of
    what seldom repeats (to sessionize these cost a twelfth of its CPU time)."""
    layout = {f"parquet.enable.dictionary#{leaf}": "false" for leaf in table.seldom_repeated_leaves}
    if table.rows_per_group:
        layout["parquet.block.row.count.limit"] = str(table.rows_per_group)
    return settings(spark, layout)


def data_files(spark: SparkSession, path: str) -> list[DataFile]:
    """All data files in the table's folder."""
    # Only listed: the content is not among the columns.
    listing = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(literal(path))
    modified_ms = (listing["modificationTime"].cast("double") * 1000).cast("long").alias("modified_ms")
    rows = listing.select("path", "length", modified_ms).collect()
    return [DataFile(row["path"], row["length"], row["modified_ms"]) for row in rows]


def files_of_version(spark: SparkSession, path: str, version: int | None = None) -> set[str]:
    """Names of the files that a version (the newest) consists of."""
    reader = spark.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    return {file_name(file) for file in reader.load(path).inputFiles()}


def join_small_files(spark: SparkSession, path: str, table: Table, target_bytes: int) -> tuple[int, int]:
    """Rewrite the small files of the table into files of about `target_bytes`; returns (files joined, files made).

    One commit that changes no row; none where every partition has few small files.
    """
    small_bytes = target_bytes // 2
    current = files_of_version(spark, path)
    small = [file for file in data_files(spark, path) if file.name in current and file.num_bytes < small_bytes]
    by_folder = Counter(file.path.rsplit("/", 1)[0] for file in small)
    if max(by_folder.values(), default=0) < MIN_FILES_TO_JOIN:
        return 0, 0
    sizes = {
        "spark.databricks.delta.optimize.maxFileSize": str(target_bytes),
        "spark.databricks.delta.optimize.minFileSize": str(small_bytes),
    }
    with settings(spark, sizes), file_layout(spark, table):
        done = DeltaTable.forPath(spark, path).optimize().executeCompaction().first()
    assert done is not None
    return done["metrics"]["numFilesRemoved"], done["metrics"]["numFilesAdded"]


def remove_old_files(spark: SparkSession, path: str, retention_hours: int, keep: Collection[str]) -> int:
    """Delete the files that neither the newest version, nor a version within the retention, nor `keep` (names) needs; returns their number."""
    oldest_kept_ms = time.time() * 1000 - retention_hours * 3_600_000
    needed = files_of_version(spark, path) | set(keep)
    old = [file for file in data_files(spark, path) if file.modified_ms < oldest_kept_ms and file.name not in needed]
    if old:
        of_younger_versions = TableLog(spark, path).files_removed_since(oldest_kept_ms)
        old = [file for file in old if file.name not in of_younger_versions]
    if not old:
        return 0
    rows = [(file.path, file.num_bytes, False, file.modified_ms) for file in old]
    inventory = spark.createDataFrame(rows, "path string, length long, isDir boolean, modificationTime long")
    inventory.createOrReplaceTempView(_INVENTORY)
    # VACUUM heeds no other hours than 0, and protects what was removed within a week unless told 0; what our retention protects is not in the
    # inventory. And it spreads its work over 10,000 tasks unless told otherwise.
    own = {
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(spark.sparkContext.defaultParallelism),
    }
    try:
        with settings(spark, own):
            spark.sql(f"VACUUM {_identifier(path)} USING INVENTORY (SELECT * FROM {_INVENTORY}) RETAIN 0 HOURS")
    finally:
        spark.catalog.dropTempView(_INVENTORY)
    left = {file.name for file in data_files(spark, path)}
    return sum(file.name not in left for file in old)


def keep_log(spark: SparkSession, path: str) -> bool:
    """Let the table's log never forget a version; True if it was not so before."""
    name, value = KEEP_LOG
    if TableLog(spark, path).properties.get(name) == value:
        return False
    spark.sql(f"ALTER TABLE {_identifier(path)} SET TBLPROPERTIES ('{name}' = '{value}')")
    return True


def readable_versions(log: TableLog, current: Collection[str], on_disk: Collection[str]) -> list[int]:
    """The versions whose files are all there, oldest first, from the names of the newest version's files and of those on disk."""
    missing = set(current) - set(on_disk)
    found = []
    for version in reversed(log.versions):
        if not missing:
            found.append(version)
        if version == log.versions[0]:
            break
        commit = log.commit(version)
        if commit is None:
            break
        missing -= {name for name, _ in commit.files("add")}
        missing |= {name for name, _ in commit.files("remove")} - set(on_disk)
    return found[::-1]


def _identifier(path: str) -> str:
    return f"delta.`{path.replace('`', '``')}`"
