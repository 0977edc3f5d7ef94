"""Records of CSV files, all columns as text, each file by its own header."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.schemas.records import INTERNAL, IS_HEADER, RAW, SOURCE_FILE, UNPARSABLE
from llm_spark.tables.raw import RawFile, Unreadable, UnreadableFilesError, literal, quoted, unreadable

_HEADER_BYTES = 1 << 16
_TORN_BYTES = 1 << 18
"""A torn line that is longer is not looked for."""
_UNREAD = f"{INTERNAL}unread"

Header = tuple[str, ...]


def read_csv(spark: SparkSession, files: Sequence[RawFile], delimiter: str, multiline: bool = False) -> DataFrame:
    """Records of files with a header line each. Files may differ in their columns. Where all are empty there is no column of data either.

    Lines of nothing but blanks and NUL bytes are no records. With `multiline` a quoted field may hold line ends.
    Raises UnreadableFilesError naming all files that cannot be opened.
    """
    by_header: dict[Header, list[RawFile]] = defaultdict(list)
    broken: list[Unreadable] = []
    for file in files:
        try:
            if header := _header(spark, file, delimiter):
                by_header[header].append(file)
        except Exception as error:
            broken.append(unreadable(file, error))
    if broken:
        raise UnreadableFilesError(broken)
    options = _options(delimiter) | {"header": "true", "multiLine": str(multiline).lower(), "columnPruning": "false"}
    groups = []
    for header, group in by_header.items():
        rows = spark.read.schema(_schema(header)).options(**options).csv([literal(file.path) for file in group])
        # A column of the data may have the name that Spark gives to what it knows of the file.
        file_path = rows.metadataColumn("_metadata").getField("file_path")
        groups.append(_records(rows, header, file_path))
    if not groups:
        nothing = f"{SOURCE_FILE} string, {RAW} string, {UNPARSABLE} boolean, {IS_HEADER} boolean"
        return spark.createDataFrame([], nothing)
    return _together(groups)


def torn_records(
    spark: SparkSession, grown: Iterable[tuple[RawFile, int]], delimiter: str
) -> tuple[DataFrame, list[RawFile]] | None:
    """The last records of files as they were when they had so many bytes, where these end within what is a longer line now; and the files
    of which there are any. None where there are none."""
    by_header: dict[Header, list[tuple[str, str]]] = defaultdict(list)
    torn = []
    for file, num_bytes in grown:
        try:
            line = _torn_line(spark, file, num_bytes)
            header = _header(spark, file, delimiter) if line else ()
        except Exception:
            continue  # Whoever reads the file finds the same, and tells it.
        if line and header:
            by_header[header].append((file.uri, line))
            torn.append(file)
    groups = []
    for header, lines in by_header.items():
        fields = ", ".join(f"{quoted(entry.name)} STRING" for entry in _schema(header))
        rows = spark.createDataFrame(lines, "uri string, line string")
        parsed = rows.select("uri", F.from_csv("line", fields, _options(delimiter)).alias("record"))
        groups.append(_records(parsed.select("uri", "record.*"), header, F.col("uri")))
    return (_together(groups), torn) if groups else None


def _options(delimiter: str) -> dict[str, str]:
    return {
        "sep": delimiter,
        "quote": '"',
        "escape": '"',
        # The reader checks a record's number of fields only when it parses all of them: hence no column pruning.
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": _UNREAD,
        "ignoreLeadingWhiteSpace": "true",
        "ignoreTrailingWhiteSpace": "true",
    }


def _schema(header: Header) -> t.StructType:
    return t.StructType([t.StructField(name, t.StringType()) for name in (*header, _UNREAD)])


def _records(rows: DataFrame, header: Header, source_file: Column) -> DataFrame:
    return rows.select(
        *[F.col(quoted(name)) for name in header],
        source_file.alias(SOURCE_FILE),
        F.col(_UNREAD).alias(RAW),
        F.col(_UNREAD).isNotNull().alias(UNPARSABLE),
        _repeats(header).alias(IS_HEADER),
    )


def _together(groups: Sequence[DataFrame]) -> DataFrame:
    records = groups[0]
    for group in groups[1:]:
        records = records.unionByName(group, allowMissingColumns=True)
    return records


def _repeats(header: Header) -> Column:
    repeated = F.lit(True)
    for name in header:
        repeated = repeated & (F.col(quoted(name)) == F.lit(name))
    return F.coalesce(repeated, F.lit(False))


def _header(spark: SparkSession, file: RawFile, delimiter: str) -> Header:
    line = _first_line(spark, file)
    names = next(csv.reader([line], delimiter=delimiter), []) if line else []
    seen: dict[str, int] = {}
    header = []
    for place, name in enumerate(names):
        # No expression can name a column with a backtick in it.
        plain = name.strip().strip("\ufeff").replace("`", "'") or f"_c{place}"
        # Spark's column names do not differ by case.
        seen[plain.lower()] = seen.get(plain.lower(), 0) + 1
        header.append(plain if seen[plain.lower()] == 1 else f"{plain}_{seen[plain.lower()]}")
    return tuple(header)


def _first_line(spark: SparkSession, file: RawFile) -> str:
    """The first line that is not blank; Spark's reader passes blank ones over too."""
    head = b"" if file.num_bytes == 0 else _bytes_of(spark, file, 0, _HEADER_BYTES)
    lines = head.decode("utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.strip("\ufeff \t")), "")


def _torn_line(spark: SparkSession, file: RawFile, num_bytes: int) -> str:
    """What the line that the file's first `num_bytes` end in held of the one that stands there now; empty where it was whole."""
    begin = max(0, num_bytes - _TORN_BYTES)
    read = _bytes_of(spark, file, begin, num_bytes + 1 - begin, plain_alone=True)
    before, after = read[:-1], read[-1:]
    if len(read) < 2 or after in b"\r\n":
        return ""
    # A line that begins the file is its header, and of one that begins before what was read the beginning is not known.
    _, *later = re.split(rb"\r\n|\r|\n", before)
    return later[-1].decode("utf-8", errors="replace") if later else ""


def _bytes_of(spark: SparkSession, file: RawFile, begin: int, num_bytes: int, plain_alone: bool = False) -> bytes:
    """Bytes of the file's text, fewer where it ends before; none of a compressed file with `plain_alone`."""
    jvm: Any = spark._jvm
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    path = jvm.org.apache.hadoop.fs.Path(file.path)
    codec = jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(hadoop).getCodec(path)
    if plain_alone and codec is not None:
        return b""
    stream = path.getFileSystem(hadoop).open(path)
    try:
        if begin:
            stream.seek(begin)
        if codec is not None:
            stream = codec.createInputStream(stream)
        return bytes(stream.readNBytes(num_bytes))
    finally:
        stream.close()
