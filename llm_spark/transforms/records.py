"""Lines of text into records: JSON lines and web access logs.

In: the file and the line (schemas/records.py). Out: the data's columns as text besides, and whether the line is unparsable. A line of more
than `max_chars` is not looked into.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.config import IngestConfig
from llm_spark.schemas.records import INTERNAL, RAW, SOURCE_FILE, UNPARSABLE

# NCSA combined log format: host identity user [time] "request" status size "referrer" "agent".
# Possessive: a long request would otherwise exhaust the JVM's stack.
_QUOTED = r'"((?:[^"\\]|\\.)*+)"'
ACCESS_LOG = rf"^(\S+) (\S+) (\S+) \[([^\]]+)\] {_QUOTED} (\d{{3}}) (\d+|-) {_QUOTED} {_QUOTED}\s*$"
DEFAULT_MAX_CHARS = IngestConfig.max_record_chars
_UNREAD = f"{INTERNAL}unread"
_GAP, _COMMA = r"\}\s*\{", r"\}\s*,\s*\{"
_STRINGS = r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'"""
"""Spark reads single quotes too."""
ACCESS_LOG_FIELDS = ("host", "identity", "user", "time", "request", "status", "size", "referrer", "agent")


def bounded(max_chars: int) -> Column:
    """The line, or null where it is too long to be looked into."""
    # Bytes first: they are known, characters are counted.
    is_short = (F.octet_length(RAW) <= max_chars) | (F.length(RAW) <= max_chars)
    return F.when(is_short, F.col(RAW))


def parse_json_lines(
    lines: DataFrame, columns: Iterable[tuple[str, ...]], max_chars: int = DEFAULT_MAX_CHARS
) -> DataFrame:
    """Read the named columns of each JSON object as text; `columns` are paths such as ("user", "id") for a nested field.

    A line of several objects is unparsable: it is no JSON line, and which of them it stands for is not said.
    """
    schema = text_schema(columns).add(_UNREAD, t.StringType())
    line = bounded(max_chars)
    parsed = lines.withColumn("_record", F.from_json(line, schema, {"columnNameOfCorruptRecord": _UNREAD}))
    unparsable = F.col("_record").isNull() | F.col(f"_record.{_UNREAD}").isNotNull() | _holds_several_objects(line)
    fields = [F.col(f"_record.`{field.name}`").alias(field.name) for field in schema.fields if field.name != _UNREAD]
    return parsed.select(*fields, SOURCE_FILE, RAW, unparsable.alias(UNPARSABLE))


def _holds_several_objects(line: Column) -> Column:
    """Whether the line goes on after its first object with another one, where Spark's reader stops without a word."""

    def holds(text: str) -> Column:
        # A look at the bytes, which spares nearly all lines the patterns.
        return F.contains(F.col(RAW), F.lit(text))

    may_have_gap = holds("}{") | holds("} ") | holds("}\t")
    side_by_side = may_have_gap & line.rlike(_GAP) & F.regexp_replace(line, _STRINGS, "").rlike(_GAP)
    # Between brackets objects in a row are one value. To tell these from others would be to parse every line that has them twice.
    in_a_row = holds("},") & ~holds("[") & line.rlike(_COMMA)
    is_list = in_a_row & (F.json_array_length(F.concat(F.lit("["), line, F.lit("]"))) > 1)
    return F.coalesce(side_by_side, F.lit(False)) | F.coalesce(is_list, F.lit(False))


def text_schema(paths: Iterable[tuple[str, ...]]) -> t.StructType:
    """Columns of text at these paths."""
    tree: dict[str, list[tuple[str, ...]]] = {}
    for head, *rest in paths:
        below = tree.setdefault(head, [])
        if rest:
            below.append(tuple(rest))
    schema = t.StructType()
    for name, below in tree.items():
        schema = schema.add(name, text_schema(below) if below else t.StringType())
    return schema


def parse_access_log(lines: DataFrame, max_chars: int = DEFAULT_MAX_CHARS) -> DataFrame:
    """Read combined log format; `-` stands for nothing. `method` and `path` are taken from the request, the path without its query."""
    matched = lines.withColumn("_matches", F.coalesce(bounded(max_chars).rlike(ACCESS_LOG), F.lit(False)))
    groups = [F.regexp_extract(RAW, ACCESS_LOG, place) for place in range(1, len(ACCESS_LOG_FIELDS) + 1)]
    fields = [
        F.when(F.col("_matches") & (group != "-"), group).alias(name)
        for name, group in zip(ACCESS_LOG_FIELDS, groups, strict=True)
    ]
    split = matched.select(*fields, SOURCE_FILE, RAW, (~F.col("_matches")).alias(UNPARSABLE))
    return split.withColumns(
        {
            "method": F.regexp_extract("request", r"^(\S+)", 1),
            "path": F.regexp_extract("request", r"^\S+ ([^\s?#]+)", 1),
        }
    )
