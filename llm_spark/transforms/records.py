"""Lines of text into records: JSON lines and web access logs.

In: `_source_file`, `_raw`. Out: the data's columns as text besides, and `_unparsable`. A line of more than `max_chars` is not looked into.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.config import IngestConfig

# NCSA combined log format: host identity user [time] "request" status size "referrer" "agent".
# Possessive: a long request would otherwise exhaust the JVM's stack.
_QUOTED = r'"((?:[^"\\]|\\.)*+)"'
ACCESS_LOG = rf"^(\S+) (\S+) (\S+) \[([^\]]+)\] {_QUOTED} (\d{{3}}) (\d+|-) {_QUOTED} {_QUOTED}\s*$"
DEFAULT_MAX_CHARS = IngestConfig.max_record_chars
ACCESS_LOG_FIELDS = ("host", "identity", "user", "time", "request", "status", "size", "referrer", "agent")


def bounded(max_chars: int) -> Column:
    """The line, or null where it is too long to be looked into."""
    # Bytes first: they are known, characters are counted.
    is_short = (F.octet_length("_raw") <= max_chars) | (F.length("_raw") <= max_chars)
    return F.when(is_short, F.col("_raw"))


def parse_json_lines(
    lines: DataFrame, columns: Iterable[tuple[str, ...]], max_chars: int = DEFAULT_MAX_CHARS
) -> DataFrame:
    """Read the named columns of each JSON object as text; `columns` are paths such as ("user", "id") for a nested field."""
    schema = _text_schema(columns).add("_unread", t.StringType())
    parsed = lines.withColumn(
        "_record", F.from_json(bounded(max_chars), schema, {"columnNameOfCorruptRecord": "_unread"})
    )
    unparsable = F.col("_record").isNull() | F.col("_record._unread").isNotNull()
    fields = [F.col(f"_record.`{field.name}`").alias(field.name) for field in schema.fields if field.name != "_unread"]
    return parsed.select(*fields, "_source_file", "_raw", unparsable.alias("_unparsable"))


def _text_schema(paths: Iterable[tuple[str, ...]]) -> t.StructType:
    tree: dict[str, list[tuple[str, ...]]] = {}
    for head, *rest in paths:
        below = tree.setdefault(head, [])
        if rest:
            below.append(tuple(rest))
    schema = t.StructType()
    for name, below in tree.items():
        schema = schema.add(name, _text_schema(below) if below else t.StringType())
    return schema


def parse_access_log(lines: DataFrame, max_chars: int = DEFAULT_MAX_CHARS) -> DataFrame:
    """Read combined log format; `-` stands for nothing. `method` and `path` are taken from the request, the path without its query."""
    matched = lines.withColumn("_matches", F.coalesce(bounded(max_chars).rlike(ACCESS_LOG), F.lit(False)))
    groups = [F.regexp_extract("_raw", ACCESS_LOG, place) for place in range(1, len(ACCESS_LOG_FIELDS) + 1)]
    fields = [
        F.when(F.col("_matches") & (group != "-"), group).alias(name)
        for name, group in zip(ACCESS_LOG_FIELDS, groups, strict=True)
    ]
    split = matched.select(*fields, "_source_file", "_raw", (~F.col("_matches")).alias("_unparsable"))
    return split.withColumns(
        {
            "method": F.regexp_extract("request", r"^(\S+)", 1),
            "path": F.regexp_extract("request", r"^\S+ ([^\s?#]+)", 1),
        }
    )
