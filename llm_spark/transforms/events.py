"""Records into events: the configured expressions, the verdict on each record, and which events are new.

Judged records have the event's columns and `reason`: null for an accepted one, else one of `schemas.REJECTION_REASONS`.
"""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.config import ColumnsConfig, IngestConfig
from llm_spark.transforms.identity import stable_id
from llm_spark.transforms.missing import filled, missing_attribute, missing_reason, normalised_item

_HAS_DATE = r"^\s*\d{4}-\d{2}-\d{2}"
_HAS_ZONE = r"(?i)(Z|UTC|GMT|:\d{2}(\.\d+)?\s*[+-]\d{1,2}(:?\d{2})?|\d[+-]\d{2}:?\d{2}|[a-z]+/[a-z_]+)\s*$"
_FUTURE_TOLERANCE = "1 day"
_EPOCH_UNITS_PER_SECOND = {"epoch_s": 1, "epoch_ms": 1_000, "epoch_us": 1_000_000}


def mapped_expressions(columns: ColumnsConfig) -> dict[str, str]:
    """Name of each mapped field: its column or expression."""
    named = {"user": columns.user, "item": columns.item, "time": columns.time}
    optional = {"type": columns.type, "value": columns.value, "session": columns.session}
    named |= {name: expression for name, expression in optional.items() if expression is not None}
    return named | {f"attributes.{name}": expression for name, expression in columns.attributes.items()}


def _mapped(expression: str | None, known: set[str]) -> Column:
    if expression is None:
        return F.lit(None).cast("string")
    return F.col(f"`{expression}`") if expression in known else F.expr(expression)


def _text(column: Column) -> Column:
    """As trimmed text; null where empty."""
    trimmed = F.trim(column.cast("string"))
    return F.when(F.length(trimmed) > 0, trimmed)


def _finite(number: Column) -> Column:
    """Null for what is no number or infinite."""
    return F.when(F.abs(number) < F.lit(float("inf")), number)


def _event_time(raw: Column, kind: t.DataType, time_format: str, time_zone: str) -> Column:
    """UTC timestamp of a time column, null where it cannot be read."""
    if isinstance(kind, t.TimestampType):
        return raw
    if isinstance(kind, t.TimestampNTZType | t.DateType):
        return F.to_utc_timestamp(raw.cast("timestamp"), time_zone)
    if time_format in _EPOCH_UNITS_PER_SECOND:
        # Decimal, since a double holds an epoch in seconds only to about a microsecond and a cast of it would round differently by magnitude.
        seconds = raw.cast("decimal(30, 9)") / F.lit(_EPOCH_UNITS_PER_SECOND[time_format])
        in_range = F.abs(seconds) < F.lit(2**40)
        return F.when(in_range, F.timestamp_micros((seconds * 1_000_000).cast("bigint")))
    if time_format == "iso8601":
        # Spark reads a bare time of day as today's.
        parsed = F.when(raw.cast("string").rlike(_HAS_DATE), F.try_to_timestamp(raw.cast("string")))
        has_zone = raw.cast("string").rlike(_HAS_ZONE)
        return F.when(has_zone, parsed).otherwise(F.to_utc_timestamp(parsed, time_zone))
    parsed = F.try_to_timestamp(raw.cast("string"), F.lit(time_format))
    unquoted = "".join(time_format.split("'")[::2])
    return parsed if any(letter in unquoted for letter in "XxZVzO") else F.to_utc_timestamp(parsed, time_zone)


def judge(records: DataFrame, config: IngestConfig, now: datetime) -> DataFrame:
    """Apply the column mapping and give each record its verdict. `now` (UTC) is the latest believable time, give or take a day."""
    known = set(records.columns)
    columns, missing = config.columns, config.missing
    attributes = [(name, _mapped(expression, known)) for name, expression in columns.attributes.items()]
    raw_time = _mapped(columns.time, known)
    time_kind = records.select(raw_time.alias("time")).schema["time"].dataType
    data_columns = [F.col(f"`{name}`") for name in records.columns if not name.startswith("_")]
    filtered = F.coalesce(
        *[F.when(~F.coalesce(F.expr(rule), F.lit(False)), F.lit(rule)) for rule in config.filters],
        F.lit(None).cast("string"),
    )
    pairs = [
        column
        for name, value in attributes
        for column in (F.lit(name), filled(_text(value), missing.attributes.get(name, "keep")))
    ]
    item = _text(normalised_item(_text(_mapped(columns.item, known)), config.normalise_item))
    value = _mapped(columns.value, known)
    mapped = records.select(
        "_source_file",
        "_unparsable",
        F.coalesce(F.col("_raw"), F.to_json(F.struct(*data_columns))).alias("_raw_text"),
        F.when(~F.col("_unparsable"), filtered).alias("_broken_rule"),
        filled(_text(_mapped(columns.user, known)), missing.user).alias("user_id"),
        filled(item, missing.item).alias("item_id"),
        filled(_text(_mapped(columns.type, known)), missing.type).alias("event_type"),
        _text(raw_time).alias("_raw_time"),
        _event_time(raw_time, time_kind, config.time_format, config.time_zone).alias("event_time"),
        _text(value).alias("_raw_value"),
        _finite(value.cast("double")).alias("value"),
        _text(_mapped(columns.session, known)).alias("session_key"),
        (F.create_map(*pairs) if pairs else F.create_map()).cast("map<string,string>").alias("attributes"),
    )
    latest = F.lit(now) + F.expr(f"INTERVAL {_FUTURE_TOLERANCE}")
    reason = (
        F.when(F.col("_unparsable"), "unparsable")
        .when(F.col("_broken_rule").isNotNull(), "filtered")
        .when(F.col("user_id").isNull(), "missing_user")
        .when(F.col("item_id").isNull(), "missing_item")
        .when(F.col("_raw_time").isNull(), "missing_time")
        .when(missing_reason(config).isNotNull(), missing_reason(config))
        .when(F.col("event_time").isNull(), "bad_time")
        .when(F.col("event_time") < F.lit(config.earliest_time).cast("timestamp"), "time_out_of_range")
        .when(F.col("event_time") > latest, "future_time")
    )
    detail = F.coalesce(
        F.col("_broken_rule"),
        F.when(F.col("reason") == "missing_attribute", missing_attribute(config))
        .when(F.col("reason") == "missing_value", F.col("_raw_value"))
        .when(F.col("reason") == "missing_type", F.lit(None))
        .when(F.col("user_id").isNotNull() & F.col("item_id").isNotNull(), F.col("_raw_time")),
    )
    judged = mapped.withColumn("reason", reason)
    return judged.select(
        F.col("_source_file").alias("source_file"),
        "reason",
        F.when(F.col("reason").isNotNull(), F.col("_raw_text")).alias("raw"),
        F.when(F.col("reason").isNotNull() & ~F.col("_unparsable"), detail).alias("detail"),
        F.when(F.col("reason").isNull(), _event_id()).alias("event_id"),
        "user_id",
        "item_id",
        "event_type",
        "event_time",
        "value",
        "session_key",
        "attributes",
        F.to_date("event_time").alias("event_date"),
    )


def _event_id() -> Column:
    """Hash of the event's identity; nulls are told from texts by a mark."""
    parts = [
        F.col("user_id"),
        F.col("item_id"),
        F.col("event_type"),
        F.unix_micros("event_time").cast("string"),
        F.col("value").cast("string"),
        F.col("session_key"),
        F.to_json("attributes"),
    ]
    marked = [F.coalesce(F.concat(F.lit("="), part), F.lit("-")) for part in parts]
    return stable_id(*marked)


def accepted_events(judged: DataFrame) -> DataFrame:
    """Accepted records, each with `occurrence`: 1 for the one that becomes the event, more for its duplicates in this batch.

    Of equal records the first by file name counts, so that a rerun keeps the same one. `occurrence_in_file` counts within the file.
    """
    accepted = judged.where(F.col("reason").isNull()).drop("reason", "raw", "detail")
    of_the_same_event = Window.partitionBy("event_id").orderBy("source_file")
    within_file = Window.partitionBy("event_id", "source_file").orderBy("source_file")
    return accepted.withColumns(
        {
            "occurrence": F.row_number().over(of_the_same_event),
            "occurrence_in_file": F.row_number().over(within_file),
        }
    )


def rejected_records(judged: DataFrame) -> DataFrame:
    """Rejected records with a `record_id` of their own: equal broken lines of one file are told apart by their occurrence."""
    rejected = judged.where(F.col("reason").isNotNull()).select("source_file", "raw", "reason", "detail")
    equal_records = Window.partitionBy("source_file", "raw").orderBy("reason")
    occurrence = F.row_number().over(equal_records).cast("string")
    record_id = stable_id(F.col("source_file"), F.coalesce("raw", F.lit("")), occurrence)
    return rejected.withColumn("record_id", record_id)
