"""What came into a table, or changed in it, between two versions, from the JSON commits of its Delta log (Delta protocol: "Actions")."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.schemas import Table
from llm_spark.tables.globs import literal
from llm_spark.tables.maintenance import data_files
from llm_spark.tables.warehouse import Warehouse

_COMMIT = """add struct<path: string, dataChange: boolean, stats: string>, remove struct<path: string, dataChange: boolean>,
metaData struct<id: string>"""
_NUM_RECORDS = "get_json_object(add.stats, '$.numRecords')"


@dataclass(frozen=True)
class Additions:
    """Files whose rows a table gained, and the number of those rows."""

    files: tuple[str, ...]
    num_rows: int


def additions(warehouse: Warehouse, table: Table, after: int, until: int) -> Additions | None:
    """What the commits after version `after`, up to and with `until`, added.

    None where that cannot be told: rows were removed or changed, the table was made anew, or the log no longer reaches back. Rewriting
    without a change of rows (OPTIMIZE) counts for nothing.
    """
    spark, root = warehouse.spark, warehouse.path(table)
    commits = [f"{root}/_delta_log/{version:020d}.json" for version in range(after + 1, until + 1)]
    if not commits:
        return Additions((), 0) if after == until else None
    try:
        actions = spark.read.schema(_COMMIT).json([literal(commit) for commit in commits])
        # A commit whose data changed without a note of it in the action counts as a change.
        changed = actions.where(
            F.coalesce("add.dataChange", "remove.dataChange", F.lit(True))
            & F.coalesce("add.path", "remove.path", "metaData.id").isNotNull()
        )
        rows = changed.select(
            "add.path",
            F.expr(_NUM_RECORDS).cast("bigint").alias("num_rows"),
            F.col("remove").isNotNull().alias("is_removal"),
            F.col("metaData").isNotNull().alias("is_layout"),
        ).collect()
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        return None
    added = [row for row in rows if not row["is_layout"]]
    if any(row["is_removal"] or row["num_rows"] is None for row in added):
        return None
    if len(added) < len(rows) and not _is_laid_out_as_before(warehouse, table, after, until):
        return None
    files = tuple(path if "://" in path else f"{root}/{path}" for path in (unquote(row["path"]) for row in added))
    return Additions(files, sum(row["num_rows"] for row in added))


def _is_laid_out_as_before(warehouse: Warehouse, table: Table, after: int, until: int) -> bool:
    """Whether the table has the same columns in both versions: a commit that tells of its layout may tell of a property, as `maintain` sets one.

    Another partitioning would have removed files, and a table made anew counts its versions from 0.
    """
    delta = warehouse.spark.read.format("delta")
    try:
        then, now = (
            delta.option("versionAsOf", version).load(warehouse.path(table)).schema for version in (after, until)
        )
    except AnalysisException:
        return False
    return bool(then == now)


def read_additions(warehouse: Warehouse, table: Table, added: Additions, columns: list[str]) -> DataFrame | None:
    """The added rows, in `columns` (none of which partitions the table); None where a file is gone, by VACUUM."""
    schema = t.StructType([table.schema[name] for name in columns])
    if not added.files:
        return warehouse.spark.createDataFrame([], schema)
    try:
        return warehouse.spark.read.schema(schema).parquet(*map(literal, added.files)).select(columns)
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        return None


@dataclass(frozen=True)
class ChangedParts:
    """Partitions of a table that are not what they were, by the values of its partition columns as the log writes them."""

    version_before: int
    """The newest version with the old rows."""
    parts: frozenset[tuple[str, ...]]


def changed_parts(warehouse: Warehouse, table: Table, after: int, until: int) -> ChangedParts | None:
    """The partitions that the commits after version `after`, up to and with `until`, changed, both of whose states can be read.

    None where that cannot be told: the log no longer reaches back, files of the old state are gone by VACUUM, or the columns are not the same.
    """
    log, version_before = warehouse.log(table), until
    parts: set[tuple[str, ...]] = set()
    removed: set[str] = set()
    is_laid_out = False
    for version in range(after + 1, until + 1):
        commit = log.commit(version)
        if commit is None:
            return None
        is_laid_out |= any("metaData" in action for action in commit.actions)
        if commit.changed_data:
            version_before = min(version_before, version - 1)
        files = [(kind, name, file) for kind in ("add", "remove") for name, file in commit.files(kind)]
        if version_before < version:
            removed |= {name for kind, name, _ in files if kind == "remove"}
        for _, _, file in files:
            if file.get("dataChange", True):
                values = file.get("partitionValues") or {}
                if set(values) != set(table.partition_by):
                    return None
                parts.add(tuple(values[column] for column in table.partition_by))
    if removed - ({file.name for file in data_files(warehouse.spark, warehouse.path(table))} if removed else set()):
        return None
    if version_before not in log.versions:
        return None
    if is_laid_out and not _is_laid_out_as_before(warehouse, table, version_before, until):
        return None
    return ChangedParts(version_before, frozenset(parts))
