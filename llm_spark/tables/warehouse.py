"""The Delta tables of a warehouse: idempotent writes, pinned snapshots, file lists, SQL views.

Every write leaves either the table before or the table after, and can be repeated: a merge on the key inserts only what is not there, a
replacement replaces exactly the rows it owns.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from delta.exceptions import (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    MetadataChangedException,
)
from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.errors import UserError
from llm_spark.schemas import PREDICTIONS, RUNS, TABLES, USER_MEMORY, Table
from llm_spark.tables.current import PREDICTIONS_CURRENT, current_predictions
from llm_spark.tables.failures import storage_failure
from llm_spark.tables.lock import locked
from llm_spark.tables.log import TableLog
from llm_spark.tables.maintenance import KEEP_LOG, data_files, file_layout, files_of_version, readable_versions

_MAX_PARTITIONS_NAMED = 400
# A session set to dynamic overwriting would leave the partitions that the new rows do not touch.
_WHOLE = ("partitionOverwriteMode", "static")
_SOMEBODY_ELSE_WROTE = (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    MetadataChangedException,
)
_TIMES = ("event_time", "ended_at", "started_at", "as_of_date")


@dataclass(frozen=True)
class TableState:
    """What is there of one table."""

    name: str
    version: int
    num_rows: int
    newest_event: datetime | None
    num_files: int
    num_bytes: int
    """Of the newest version."""
    readable: tuple[int, ...]
    """Versions that can be read: those whose files are all there."""


class Warehouse:
    """All tables and model artifacts under one root: a local folder, `s3a://`, `hdfs://` or `abfss://`."""

    def __init__(self, spark: SparkSession, root: str) -> None:
        self.spark = spark
        local = re.match(r"^(?:file:(?://)?)?(/.*|[^:]*)$", root)
        self.root = str(Path(local[1]).resolve()) if local else root.rstrip("/")
        self.is_local = local is not None

    def path(self, table: Table) -> str:
        return f"{self.root}/tables/{table.name}"

    def model_path(self, model_id: str) -> str:
        return f"{self.root}/models/{model_id}"

    def exists(self, table: Table) -> bool:
        return DeltaTable.isDeltaTable(self.spark, self.path(table))

    def log(self, table: Table) -> TableLog:
        """The table's log as it stands. UserError where the table is missing."""
        if not self.exists(table):
            raise self._missing(table)
        return TableLog(self.spark, self.path(table))

    def version(self, table: Table) -> int:
        """The newest version. UserError where the table is missing."""
        return self.log(table).version

    def data_version(self, table: Table, version: int | None = None) -> int:
        """The version in which the rows of `version` (the newest) came to be: maintenance raises the version and changes no row.

        Compare these to tell whether an input has changed, and read `version`: the files of older ones may be gone.
        """
        return self.log(table).data_commit(version).version

    def read(self, table: Table, version: int | None = None) -> DataFrame:
        """The table, at its newest version or a pinned one, columns that came later as nulls.

        UserError naming the stage to run where it is missing, and the columns where it is not laid out as this program knows it.
        """
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        if not self.exists(table):
            raise self._missing(table)
        return self._with_later_columns(table, reader.load(self.path(table)))

    def read_or_empty(self, table: Table) -> DataFrame:
        return self.read(table) if self.exists(table) else self.spark.createDataFrame([], table.schema)

    def origin(self, table: Table) -> dict[str, Any] | None:
        """What `replace` noted as the origin of the rows that are there; None for a missing table or another kind of write."""
        if not self.exists(table):
            return None
        note = self.log(table).data_commit().note
        return json.loads(note) if note else None

    def replace(self, table: Table, rows: DataFrame, origin: Mapping[str, Any]) -> None:
        """Put `rows` in place of the whole table in one commit, noting what they were made from."""
        is_new = self._create(table)
        writer = conformed(rows, table).write.format("delta").mode("overwrite").option(*_WHOLE)
        if not is_new and self.is_laid_out_otherwise(table):
            writer = writer.option("overwriteSchema", "true").partitionBy(*table.partition_by)
        with file_layout(self.spark, table):
            writer.option("userMetadata", json.dumps(origin, sort_keys=True)).save(self.path(table))

    def replace_where(self, table: Table, rows: DataFrame, predicate: str, origin: Mapping[str, Any]) -> None:
        """Put `rows`, which must all meet `predicate`, in place of the rows that meet it, in one commit, noting what they were made from."""
        self._create(table)
        writer = (
            conformed(rows, table)
            .write.format("delta")
            .mode("overwrite")
            .option(*_WHOLE)
            .option("replaceWhere", predicate)
            .option("mergeSchema", "true")  # a table that an earlier version made gets the columns that it lacks
        )
        with file_layout(self.spark, table):
            writer.option("userMetadata", json.dumps(origin, sort_keys=True)).save(self.path(table))

    def insert_new(self, table: Table, rows: DataFrame, key: str) -> None:
        """Insert the rows whose `key` is not in the table; the keys of `rows` must be distinct."""
        is_new = self._create(table)
        new_rows = conformed(rows, table)
        if is_new:
            # One file a partition: each task would otherwise write a file into each.
            spread = new_rows.repartition(*table.partition_by) if table.partition_by else new_rows
            spread.write.format("delta").mode("append").save(self.path(table))
            return
        condition = f"old.{key} = new.{key}{self._partition_filter(table, new_rows)}"
        target = DeltaTable.forPath(self.spark, self.path(table)).alias("old")
        target.merge(new_rows.alias("new"), condition).whenNotMatchedInsertAll().execute()

    def upsert(self, table: Table, rows: DataFrame, key: str, leaving: Sequence[str] = ()) -> None:
        """Insert the rows whose `key` is new, replace the others, and remove those of the keys `leaving`, in one commit. No key may occur twice."""
        entering = conformed(rows, table)
        if self._create(table):
            entering.write.format("delta").mode("append").save(self.path(table))
            return
        target = DeltaTable.forPath(self.spark, self.path(table)).alias("old")
        if not leaving:
            merge = target.merge(entering.alias("new"), f"old.{key} = new.{key}").withSchemaEvolution()
            merge.whenMatchedUpdateAll().whenNotMatchedInsertAll().execute()
            return
        gone = self.spark.createDataFrame([(name, True) for name in leaving], f"{key} string, is_gone boolean")
        both = entering.withColumn("is_gone", F.lit(False)).unionByName(gone, allowMissingColumns=True)
        values: dict[str, str | Column] = {name: F.col(f"new.{name}") for name in table.schema.names}
        merge = target.merge(both.alias("new"), f"old.{key} = new.{key}").withSchemaEvolution()
        merge = merge.whenMatchedDelete("new.is_gone")
        merge.whenMatchedUpdate(set=values).whenNotMatchedInsert("NOT new.is_gone", values).execute()

    def delete(self, table: Table, condition: Column) -> None:
        """Remove the rows for which `condition` holds, in one commit."""
        DeltaTable.forPath(self.spark, self.path(table)).delete(condition)

    def undo(self, table: Table) -> None:
        """Put the version before the newest back in place."""
        DeltaTable.forPath(self.spark, self.path(table)).restoreToVersion(self.version(table) - 1)

    def append(self, table: Table, rows: DataFrame, write_id: str) -> None:
        """Append; a repetition under the same `write_id` is ignored."""
        self._create(table)
        writer = conformed(rows, table).write.format("delta").mode("append").option("mergeSchema", "true")
        with file_layout(self.spark, table):
            writer.option("txnAppId", write_id).option("txnVersion", 1).save(self.path(table))

    def create(self, table: Table, properties: Mapping[str, str] | None = None) -> bool:
        """Create the table, empty and with these properties, unless it is there; True if it was created."""
        return self._create(table, properties)

    def table_property(self, table: Table, name: str) -> str | None:
        """What was noted under this name when the table was created; None where nothing was."""
        return self.log(table).properties.get(name)

    def num_rows(self, table: Table) -> int:
        """Rows of the newest version, as Delta's log counts them."""
        return self.read(table).count()

    def last_turn(self, table: Table, writer: str) -> int:
        """The newest turn under which `writer` appended; 0 before the first and for a missing table."""
        if not self.exists(table):
            return 0
        return self.log(table).last_turn(writer)

    def append_in_turn(self, table: Table, rows: DataFrame, writer: str, turn: int) -> None:
        """Append as the writer's `turn`-th commit. Delta leaves it out where that turn is taken, and refuses it where another run commits
        a turn of this writer at the same time: what was found new to the table before may not be any more."""
        self._create(table)
        appender = conformed(rows, table).write.format("delta").mode("append")
        try:
            with file_layout(self.spark, table):
                appender.option("txnAppId", writer).option("txnVersion", turn).save(self.path(table))
        except Exception as error:
            if "ConcurrentTransaction" not in str(error):
                raise
            raise UserError(
                f"another run wrote to '{table.name}' in '{self.root}' at the same time: let one finish, then run this one again"
            ) from error

    def locked(self, table: Table) -> AbstractContextManager[None]:
        """Keep others that lock this table out while the block runs, where Delta's log alone does not tell who was first: see tables/lock.py."""
        return locked(Path(self.root) / "tables" / f".{table.name}.lock") if self.is_local else nullcontext()

    def replace_in_turn(self, table: Table, rows: DataFrame, writer: str, turn: int) -> bool:
        """Put `rows` in place of the whole table as the writer's `turn`-th commit; False where another run took that turn.

        The next turn is `last_turn` at the version that the rows were made from, plus one: then nothing that came in between is lost.
        """
        is_new = self._create(table)
        before, note = self.version(table), json.dumps({"write": uuid.uuid4().hex, "turn": turn})
        overwriter = conformed(rows, table).write.format("delta").mode("overwrite").option(*_WHOLE)
        if not is_new and self.is_laid_out_otherwise(table):
            overwriter = overwriter.option("overwriteSchema", "true")
        in_turn = overwriter.option("txnAppId", writer).option("txnVersion", turn).option("userMetadata", note)
        try:
            in_turn.save(self.path(table))
        except _SOMEBODY_ELSE_WROTE:
            return False
        # Delta leaves a write out, without a word, where its turn was taken before it began.
        log = self.log(table)
        commits = (log.commit(version) for version in range(log.version, before, -1))
        return any(commit is not None and commit.note == note for commit in commits)

    def register(self) -> list[str]:
        """Make each table that exists a temporary view of its name, and `predictions_current`; returns the names."""
        names = []
        for table in TABLES.values():
            if self.exists(table):
                self.read(table).createOrReplaceTempView(table.name)
                names.append(table.name)
        if PREDICTIONS.name in names:
            self.spark.sql(current_predictions(USER_MEMORY.name in names)).createOrReplaceTempView(PREDICTIONS_CURRENT)
            names.append(PREDICTIONS_CURRENT)
        return names

    def states(self) -> list[TableState]:
        """Every table that exists: version, rows, newest event (or newest session, history, day of prediction), files, what can be read."""
        found = []
        for table in TABLES.values():
            if not self.exists(table):
                continue
            rows = self.read(table)
            time = next((name for name in _TIMES if name in rows.columns and table is not RUNS), None)
            newest = F.max(time).cast("timestamp") if time else F.lit(None).cast("timestamp")
            counted = rows.agg(F.count("*").alias("num_rows"), newest.alias("newest")).first()
            assert counted is not None
            log, on_disk = self.log(table), {file.name for file in data_files(self.spark, self.path(table))}
            current = files_of_version(self.spark, self.path(table), log.version)
            readable = tuple(readable_versions(log, current, on_disk))
            counts = (counted["num_rows"], counted["newest"], log.num_files, log.num_bytes)
            found.append(TableState(table.name, log.version, *counts, readable))
        return found

    def _create(self, table: Table, properties: Mapping[str, str] | None = None) -> bool:
        """Create the table with its comments unless it is there; True if it was created."""
        if self.exists(table):
            return False
        builder = DeltaTable.createIfNotExists(self.spark).location(self.path(table)).addColumns(table.schema)
        builder = builder.comment(table.comment)
        if table.partition_by:
            builder = builder.partitionedBy(*table.partition_by)
        for name, value in (properties or {}).items():
            builder = builder.property(name, value)
        if table.is_pinned:
            builder = builder.property(*KEEP_LOG)
        try:
            builder.execute()
        except Exception as error:
            if failure := storage_failure(error, self.root):
                raise UserError(failure) from error
            if "DELTA_TABLE_NOT_FOUND" in str(error) and self._discard_unborn(table):
                return self._create(table, properties)
            java = getattr(error, "java_exception", None)
            line = " ".join(str(java.getMessage() if java is not None else error).split())[:200]
            raise UserError(
                f"table '{table.name}' cannot be created under '{self.root}': {line}; is the warehouse writable?"
            ) from error
        return True

    def _discard_unborn(self, table: Table) -> bool:
        """Remove the log's folder where it holds no commit: a run that was stopped in its first leaves it, and Delta then creates no table
        there. True if it was removed."""
        jvm: Any = self.spark._jvm
        log = jvm.org.apache.hadoop.fs.Path(self.path(table), "_delta_log")
        files = log.getFileSystem(self.spark._jsparkSession.sessionState().newHadoopConf())
        if not files.exists(log):
            return False
        names = [entry.getPath().getName() for entry in files.listStatus(log)]
        if any(re.match(r"\d{20}\.", name) for name in names):
            return False
        jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
        return bool(files.delete(log, True))

    def is_laid_out_otherwise(self, table: Table) -> bool:
        """Whether the table was made by an earlier version of this program, with other columns or partitions."""
        columns = self.spark.read.format("delta").load(self.path(table)).columns
        return (columns, self.log(table).partition_by) != (table.schema.names, list(table.partition_by))

    def _with_later_columns(self, table: Table, rows: DataFrame) -> DataFrame:
        lacking = {field.name: field.dataType for field in table.schema.fields if field.name not in rows.columns}
        if not lacking:
            return rows
        lost = sorted(lacking.keys() - set(table.added_later))
        if lost:
            others = sorted(set(rows.columns) - set(table.schema.names))
            has = f" and has {', '.join(others)}, which nothing here knows" if others else ""
            raise UserError(
                f"table '{table.name}' in '{self.root}' lacks the columns {', '.join(lost)}{has}: another version of this program made it, "
                f"or somebody changed it; {table.remedy}"
            )
        return rows.withColumns({name: F.lit(None).cast(kind) for name, kind in lacking.items()})

    def _missing(self, table: Table) -> UserError:
        return UserError(
            f"table '{table.name}' is not in the warehouse '{self.root}': run `llm-spark {table.written_by}` first"
        )

    def _partition_filter(self, table: Table, rows: DataFrame) -> str:
        """Name the partitions that `rows` touch, so that a merge reads no other."""
        if not table.partition_by:
            return ""
        column = table.partition_by[0]
        values = [row[0] for row in rows.select(column).distinct().limit(_MAX_PARTITIONS_NAMED + 1).collect()]
        pruned = f" AND old.{column} = new.{column}"
        if len(values) > _MAX_PARTITIONS_NAMED or not values:
            return pruned
        named = ", ".join(f"DATE'{value}'" if isinstance(value, date) else repr(value) for value in values)
        return f"{pruned} AND old.{column} IN ({named})"


def conformed(rows: DataFrame, table: Table) -> DataFrame:
    """The table's columns in the table's order and types, with their comments."""
    return rows.select(
        [
            F.col(field.name).cast(field.dataType).alias(field.name, metadata=field.metadata)
            for field in table.schema.fields
        ]
    )


def sql(warehouse: Warehouse, query: str) -> DataFrame:
    """Run a query over the registered tables. UserError in one line for a query that does not parse or names what is not there."""
    names: Sequence[str] = warehouse.register()
    if not names:
        raise UserError(
            f"no table is in the warehouse '{warehouse.root}': run `llm-spark ingest` first, or give --config or warehouse=..."
        )
    try:
        return warehouse.spark.sql(query)
    except AnalysisException as error:
        line = next(line for line in str(error).splitlines() if line.strip())
        raise UserError(f"{line} Tables here: {', '.join(names)}") from error
