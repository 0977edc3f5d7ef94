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

from llm_spark.errors import UserError
from llm_spark.schemas.records import INTERNAL, IS_HEADER, RAW, SOURCE_FILE, UNPARSABLE, quoted
from llm_spark.tables.globs import literal
from llm_spark.tables.raw import RawFile, Unreadable, UnreadableFilesError, unreadable

_HEADER_BYTES = 1 << 16
"""Read at first; twice as many each time that the header does not end in them, up to a limit."""
_MAX_HEADER_BYTES = 1 << 24
_MAX_FIELDS = 1 << 20
"""Of a record. One of more, 20,480 by default, makes Spark give the whole file up."""
_LINE_END = r"\r\n|\r|\n"
"""As Hadoop's reader has it. Python's splitlines knows further ones."""
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
        "maxColumns": str(_MAX_FIELDS),
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
    # The first field tells nearly all other records.
    may_be = F.col(quoted(header[0])) == F.lit(header[0])
    fields, names = F.array(*[F.col(quoted(name)) for name in header]), F.array(*map(F.lit, header))
    return F.when(may_be, fields == names).otherwise(F.lit(False))


def _header(spark: SparkSession, file: RawFile, delimiter: str) -> Header:
    line = _first_line(spark, file)
    names = next(csv.reader([line], delimiter=delimiter), []) if line else []
    seen: dict[str, int] = {}
    header = []
    for place, name in enumerate(names):
        # No expression can name a column with a backtick in it.
        plain = name.strip().replace("`", "'") or f"_c{place}"
        # Spark's column names do not differ by case.
        seen[plain.lower()] = seen.get(plain.lower(), 0) + 1
        header.append(plain if seen[plain.lower()] == 1 else f"{plain}_{seen[plain.lower()]}")
    return tuple(header)


def _first_line(spark: SparkSession, file: RawFile) -> str:
    """The first line that is not blank, without a byte order mark; Spark's reader passes blank ones over too. Empty where there is none.

    UserError where it does not end within what may be read for it.
    """
    num_bytes = 0 if file.num_bytes == 0 else _HEADER_BYTES
    while num_bytes <= _MAX_HEADER_BYTES:
        head = _bytes_of(spark, file, 0, num_bytes) if num_bytes else b""
        lines = re.split(_LINE_END, head.decode("utf-8", errors="replace").removeprefix("\ufeff"))
        is_all = len(head) < num_bytes or num_bytes == 0
        whole = lines if is_all else lines[:-1]
        line = next((line for line in whole if line.strip(" \t")), "")
        if line or is_all:
            return line
        num_bytes *= 2
    raise UserError(f"no header line ends within its first {_MAX_HEADER_BYTES >> 20} MiB")


def _torn_line(spark: SparkSession, file: RawFile, num_bytes: int) -> str:
    """What the line that the file's first `num_bytes` end in held of the one that stands there now; empty where it was whole."""
    begin = max(0, num_bytes - _TORN_BYTES)
    read = _bytes_of(spark, file, begin, num_bytes + 1 - begin, plain_alone=True)
    before, after = read[:-1], read[-1:]
    if len(read) < 2 or after in b"\r\n":
        return ""
    # A line that begins the file is its header, and of one that begins before what was read the beginning is not known.
    _, *later = re.split(_LINE_END.encode(), before)
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
