"""Raw files: which there are, and their records as a DataFrame.

A records frame has the data's own columns and these: `_source_file` (URI), `_raw` (the record's text; null where the format's reader took it
apart), `_unparsable` (true where the record could not be read into its columns) and, for CSV, `_is_header` (true where the record repeats
the file's header).
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.errors import DataError, UserError

_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class RawFile:
    """One raw file as listed."""

    path: str
    """What a reader takes."""
    uri: str
    """What Spark reports as `_metadata.file_path`: the file's name in every table."""
    num_bytes: int
    modified_at: datetime


def list_files(spark: SparkSession, patterns: Sequence[str]) -> list[RawFile]:
    """All files under `patterns` (files, folders, globs), by name. Names beginning with `_` or `.` are passed over, as Spark does.

    Raises UserError naming the pattern that matches nothing.
    """
    jvm: Any = spark._jvm
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    found: dict[str, RawFile] = {}
    for pattern in patterns:
        path = jvm.org.apache.hadoop.fs.Path(pattern)
        try:
            system = path.getFileSystem(hadoop)
            matches = system.globStatus(path)
        except Exception as error:
            raise UserError(f"ingest.paths: '{pattern}' cannot be listed: {java_message(error)}") from error
        before = len(found)
        for match in matches or []:
            statuses = _walk(system, match) if match.isDirectory() else [match]
            for status in statuses:
                name = status.getPath().getName()
                if not name.startswith(("_", ".")):
                    file = _raw_file(status)
                    found[file.uri] = file
        if len(found) == before:
            raise UserError(
                f"ingest.paths: nothing matches '{pattern}': check the path (relative paths start where the command runs)"
            )
    return [found[uri] for uri in sorted(found)]


def _walk(system: Any, folder: Any) -> list[Any]:
    """All files below a folder, but those in folders that Spark takes for hidden: what another job has not committed lies there."""
    statuses = []
    for status in system.listStatus(folder.getPath()):
        if status.getPath().getName().startswith(("_", ".")):
            continue
        statuses += _walk(system, status) if status.isDirectory() else [status]
    return statuses


def exists(spark: SparkSession, uri: str) -> bool:
    """Whether a file of this name, as `_metadata.file_path` gives it, is there."""
    jvm: Any = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(unquote(uri))
    return bool(path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()).exists(path))


def changed_files(spark: SparkSession, files: Sequence[RawFile]) -> list[RawFile]:
    """Those of the files that have another size or modification time than when they were listed, or are gone."""
    jvm: Any = spark._jvm
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    changed = []
    for file in files:
        path = jvm.org.apache.hadoop.fs.Path(file.path)
        try:
            now = _raw_file(path.getFileSystem(hadoop).getFileStatus(path))
        except Exception:
            changed.append(file)
            continue
        if (now.num_bytes, now.modified_at) != (file.num_bytes, file.modified_at):
            changed.append(file)
    return changed


def _raw_file(status: Any) -> RawFile:
    path = status.getPath()
    modified_at = datetime.fromtimestamp(status.getModificationTime() / 1000, UTC).replace(tzinfo=None)
    return RawFile(path.toString(), _as_reported(path.toUri().toString()), status.getLen(), modified_at)


def _as_reported(uri: str) -> str:
    """A file's URI in the form that Spark's `_metadata.file_path` gives."""
    return re.sub(r"^file:/+", "file:/", uri)


def java_message(error: Exception) -> str:
    """What Java said, in one line; what Python said where it was not Java."""
    java = getattr(error, "java_exception", None)
    text = java.getMessage() if java is not None else str(error)
    return " ".join(str(text).split())[:200]


def _literal(path: str) -> str:
    """A path that Spark shall not take for a glob."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path)


def read_text(spark: SparkSession, files: Sequence[RawFile]) -> DataFrame:
    """One row a line that is not blank, without a byte order mark: `_source_file`, `_raw`."""
    lines = spark.read.text([_literal(file.path) for file in files])
    line = F.when(F.startswith("value", F.lit("\ufeff")), F.substr("value", F.lit(2))).otherwise(F.col("value"))
    named = lines.select(F.col("_metadata.file_path").alias("_source_file"), line.alias("_raw"))
    return named.where(F.trim("_raw") != "")


def read_parquet(spark: SparkSession, files: Sequence[RawFile]) -> DataFrame:
    """Rows of Parquet files, columns by name. A column that files hold in different types becomes text; times then carry their zone."""
    try:
        return _read_parquet_group(spark, files, merge=True)
    except Exception as error:
        if "CANNOT_MERGE" not in str(error):
            raise
    by_schema: dict[str, list[RawFile]] = defaultdict(list)
    for file in files:
        schema = spark.read.parquet(_literal(file.path)).schema
        by_schema[schema.json()].append(file)
    groups = [_read_parquet_group(spark, group, merge=False) for group in by_schema.values()]
    kinds: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        for entry in group.schema.fields:
            kinds[entry.name.lower()].add(entry.dataType.simpleString())
    records = _with_text(groups[0], kinds)
    for group in groups[1:]:
        records = records.unionByName(_with_text(group, kinds), allowMissingColumns=True)
    return records


def _with_text(rows: DataFrame, kinds: dict[str, set[str]]) -> DataFrame:
    """The columns that other files hold in another type, as text."""

    def text(entry: t.StructField) -> Column:
        column = F.col(f"`{entry.name}`")
        if isinstance(entry.dataType, t.TimestampType):
            return F.date_format(column, "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX")
        return F.to_json(column) if isinstance(entry.dataType, t.StructType | t.ArrayType) else column.cast("string")

    mixed = {entry.name: text(entry) for entry in rows.schema.fields if len(kinds[entry.name.lower()]) > 1}
    return rows.withColumns(mixed) if mixed else rows


def _read_parquet_group(spark: SparkSession, files: Sequence[RawFile], merge: bool) -> DataFrame:
    rows = spark.read.option("mergeSchema", merge).parquet(*[_literal(file.path) for file in files])
    return rows.select(
        "*",
        F.col("_metadata.file_path").alias("_source_file"),
        F.lit(None).cast("string").alias("_raw"),
        F.lit(False).alias("_unparsable"),
    )


def read_csv(spark: SparkSession, files: Sequence[RawFile], delimiter: str, multiline: bool = False) -> DataFrame:
    """Records of CSV files with a header line, all columns as text. Files may differ in their columns: each is read by its own header.

    Lines of nothing but blanks and NUL bytes are no records. With `multiline` a quoted field may hold line ends.
    """
    by_header: dict[tuple[str, ...], list[RawFile]] = defaultdict(list)
    for file in files:
        header = _header(spark, file, delimiter)
        if header:
            by_header[header].append(file)
    if not by_header:
        raise DataError(f"all {len(files)} files are empty, '{files[0].path}' the first: check the export")
    groups = [_read_csv_group(spark, header, group, delimiter, multiline) for header, group in by_header.items()]
    records = groups[0]
    for group in groups[1:]:
        records = records.unionByName(group, allowMissingColumns=True)
    return records


def _read_csv_group(
    spark: SparkSession, header: tuple[str, ...], files: list[RawFile], delimiter: str, multiline: bool
) -> DataFrame:
    columns = t.StructType([t.StructField(name, t.StringType()) for name in (*header, "_unread")])
    reader = (
        spark.read.schema(columns)
        .option("header", True)
        .option("multiLine", multiline)
        .option("sep", delimiter)
        .option("quote", '"')
        .option("escape", '"')
        .option("mode", "PERMISSIVE")
        .option("columnNameOfCorruptRecord", "_unread")
        # The reader checks a record's number of fields only when it parses all of them.
        .option("columnPruning", False)
        .option("ignoreLeadingWhiteSpace", True)
        .option("ignoreTrailingWhiteSpace", True)
    )
    rows = reader.csv([_literal(file.path) for file in files])
    return rows.select(
        *[F.col(f"`{name}`") for name in header],
        F.col("_metadata.file_path").alias("_source_file"),
        F.col("_unread").alias("_raw"),
        F.col("_unread").isNotNull().alias("_unparsable"),
        _repeats(header).alias("_is_header"),
    )


def _repeats(header: tuple[str, ...]) -> Column:
    repeated = F.lit(True)
    for name in header:
        repeated = repeated & (F.col(f"`{name}`") == F.lit(name))
    return F.coalesce(repeated, F.lit(False))


def _header(spark: SparkSession, file: RawFile, delimiter: str) -> tuple[str, ...]:
    line = _first_line(spark, file)
    names = next(csv.reader([line], delimiter=delimiter), []) if line else []
    seen: dict[str, int] = {}
    header = []
    for place, name in enumerate(names):
        plain = name.strip().strip("\ufeff") or f"_c{place}"
        # Spark's column names do not differ by case.
        seen[plain.lower()] = seen.get(plain.lower(), 0) + 1
        header.append(plain if seen[plain.lower()] == 1 else f"{plain}_{seen[plain.lower()]}")
    return tuple(header)


def _first_line(spark: SparkSession, file: RawFile) -> str:
    """The first line that is not blank; Spark's reader passes blank ones over too."""
    if file.num_bytes == 0:
        return ""
    jvm: Any = spark._jvm
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    path = jvm.org.apache.hadoop.fs.Path(file.path)
    stream = path.getFileSystem(hadoop).open(path)
    try:
        codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(hadoop).getCodec(path)
        if codec is not None:
            stream = codec.createInputStream(stream)
        head = bytes(stream.readNBytes(_HEADER_BYTES))
    except Exception as error:
        raise UnreadableFileError(file.uri, java_message(error)) from error
    finally:
        stream.close()
    lines = head.decode("utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.strip("\ufeff \t")), "")


class UnreadableFileError(UserError):
    """A raw file that cannot be read: truncated, corrupt or not permitted."""

    def __init__(self, uri: str, detail: str, is_gone: bool = False) -> None:
        super().__init__(f"'{uri}' cannot be read ({detail})")
        self.uri, self.detail, self.is_gone = uri, detail, is_gone


_CANNOT_READ = (
    "FAILED_READ_FILE",
    "PATH_NOT_FOUND",
    "FileNotFoundException",
    "AccessControlException",
    "Permission denied",
)


def unreadable_file(error: Exception, files: Sequence[RawFile]) -> UnreadableFileError | None:
    """Which of `files` made a Spark job fail, where that is why it failed."""
    text = str(error)
    if not any(mark in text for mark in _CANNOT_READ):
        return None
    named = [file for file in files if any(form in text for form in _forms(file))]
    if not named:
        return None
    # A name may begin another one.
    file = max(named, key=lambda file: len(file.uri))
    causes = re.findall(r"Caused by: (?:[\w.$]+\.)?(\w+(?:Exception|Error)): ?([^\n]*)", text)
    is_gone = any(mark in text for mark in ("FILE_NOT_EXIST", "PATH_NOT_FOUND", "FileNotFoundException"))
    # Java reports a file that it may not open as one that is not found.
    if is_gone and "Permission denied" not in text:
        return UnreadableFileError(file.uri, "it is gone since it was listed", is_gone=True)
    detail = f"{causes[-1][0]}: {causes[-1][1]}" if causes else "corrupt"
    return UnreadableFileError(file.uri, detail[:200])


def _forms(file: RawFile) -> set[str]:
    """How Spark and Hadoop may write the file's name."""
    names = (file.uri, unquote(file.uri), file.path, _literal(file.path))
    return {re.sub(r"^file:/+", "/", name) for name in names}


def referenced_columns(spark: SparkSession, expression: str) -> list[tuple[str, ...]]:
    """The columns that a SQL expression names, each as its path: `user.id` gives ("user", "id").

    Raises UserError for an expression that does not parse.
    """
    session: Any = spark._jsparkSession
    try:
        leaves = session.sessionState().sqlParser().parseExpression(expression).collectLeaves()
    except Exception as error:
        raise UserError(f"'{expression}' is no valid Spark SQL expression: {java_message(error)}") from error
    paths = []
    for place in range(leaves.size()):
        leaf = leaves.apply(place)
        if leaf.getClass().getSimpleName() == "UnresolvedAttribute":
            parts = leaf.nameParts()
            paths.append(tuple(parts.apply(i) for i in range(parts.size())))
    return paths
