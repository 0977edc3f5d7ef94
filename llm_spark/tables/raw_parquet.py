"""Records of Parquet files, each file's columns in its own types."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.schemas.records import RAW, SOURCE_FILE, UNPARSABLE, quoted
from llm_spark.tables.globs import literal
from llm_spark.tables.raw import RawFile, Unreadable, UnreadableFilesError, java_message, unreadable
from llm_spark.tables.spark_settings import settings

_READ_FILE_BY_FILE = ("CANNOT_MERGE", "PARQUET_TYPE", "CANNOT_READ_FILE_FOOTER")
"""What Spark says where it cannot read all files as one: types that differ, types that it does not know, files that are broken."""
_NANOSECONDS = re.compile(r"^  \w+ int64 (.+) \(TIMESTAMP\(NANOS,(true|false)\)\)(?: = \d+)?;$", re.MULTILINE)
"""A column of times in nanoseconds, as Parquet writes a file's types down: its name, and whether it is UTC."""


def read_parquet(spark: SparkSession, files: Sequence[RawFile]) -> list[DataFrame]:
    """Rows of the files, columns by name; a frame for each set of types where a column is not of one type in all files. So what is made of a
    record does not depend on which files are read with it. Nanoseconds, which Spark has no type for, are cut off.

    Raises UnreadableFilesError naming all files that are broken or of types that cannot be read.
    """
    try:
        merged = spark.read.option("mergeSchema", True).parquet(*[literal(file.path) for file in files])
        return [_records(merged)]
    except Exception as error:
        if not any(mark in str(error) for mark in _READ_FILE_BY_FILE):
            raise
    by_types: dict[str, list[RawFile]] = defaultdict(list)
    broken: list[Unreadable] = []
    for file in files:
        try:
            by_types[_types(spark, file)].append(file)
        except Exception as error:
            broken.append(unreadable(file, error))
    groups = []
    for types, group in by_types.items():
        paths = [literal(file.path) for file in group]
        try:
            with settings(spark, {"spark.sql.legacy.parquet.nanosAsLong": "true"}):
                schema = spark.read.parquet(paths[0]).schema
        except Exception as error:
            broken += [Unreadable(file.uri, java_message(error)) for file in group]
            continue
        groups.append(_with_microseconds(_records(spark.read.schema(schema).parquet(*paths)), types))
    if broken:
        raise UnreadableFilesError(broken)
    return groups


def _records(rows: DataFrame) -> DataFrame:
    return rows.select(
        "*",
        rows.metadataColumn("_metadata").getField("file_path").alias(SOURCE_FILE),
        F.lit(None).cast("string").alias(RAW),
        F.lit(False).alias(UNPARSABLE),
    )


def _types(spark: SparkSession, file: RawFile) -> str:
    """The file's columns and types as Parquet writes them."""
    jvm: Any = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(file.path)
    source = jvm.org.apache.parquet.hadoop.util.HadoopInputFile.fromPath(
        path, spark.sparkContext._jsc.hadoopConfiguration()
    )
    reader = jvm.org.apache.parquet.hadoop.ParquetFileReader.open(source)
    try:
        return str(reader.getFileMetaData().getSchema().toString())
    finally:
        reader.close()


def _with_microseconds(rows: DataFrame, types: str) -> DataFrame:
    """Rows whose times in nanoseconds were read as numbers, with them as times."""
    found = _NANOSECONDS.findall(types)
    return rows.withColumns({name: _time(name, is_utc == "true") for name, is_utc in found}) if found else rows


def _time(name: str, is_utc: bool) -> Column:
    nanoseconds = F.col(quoted(name))
    whole_microseconds = nanoseconds - F.pmod(nanoseconds, F.lit(1_000))
    time = F.timestamp_micros(F.call_function("div", whole_microseconds, F.lit(1_000)))
    return time if is_utc else time.cast(t.TimestampNTZType())
