"""Records into events: the configured expressions, the verdict on each record, and which events are new.

Judged records have the event's columns and `reason`: null for an accepted one, else one of `schemas.REJECTION_REASONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as t

from llm_spark.config import ColumnsConfig, IngestConfig
from llm_spark.schemas.records import IS_HEADER, RAW, SOURCE_FILE, UNPARSABLE, data_columns, quoted
from llm_spark.transforms.identity import stable_id
from llm_spark.transforms.missing import filled, missing_verdicts, normalised_item
from llm_spark.transforms.pseudonyms import Pseudonyms, hide_users, shape

NUM_CHARS_KEPT = 1_000
"""Of a record that is too long."""
NUM_REJECTED_SLOTS = 64
BROKEN_TEXT = "\ufffd"
"""What stands where bytes were no UTF-8."""

_HAS_DATE = r"^\s*\d{4}-\d{2}-\d{2}"
# All else that Spark reads carries a zone: its names are too many to list.
_HAS_NO_ZONE = r"^\s*\d{4}-\d{2}-\d{2}[\sT]?[\d:.\s\p{Cntrl}]*+$"
_FUTURE_TOLERANCE = "1 day"
_EPOCH_UNITS_PER_SECOND = {"epoch_s": 1, "epoch_ms": 1_000, "epoch_us": 1_000_000}
# Up to this magnitude a number of epoch_auto is in that unit.
_EPOCH_MAGNITUDES = ((10**11, 1), (10**14, 1_000), (10**17, 1_000_000))


def mapped_expressions(columns: ColumnsConfig) -> dict[str, str]:
    """Name of each mapped field: its column or expression."""
    named = {"user": columns.user, "item": columns.item, "time": columns.time}
    optional = {"type": columns.type, "value": columns.value, "session": columns.session}
    named |= {name: expression for name, expression in optional.items() if expression is not None}
    return named | {f"attributes.{name}": expression for name, expression in columns.attributes.items()}


def _mapped(expression: str | None, known: set[str]) -> Column:
    if expression is None:
        return F.lit(None).cast("string")
    return F.col(quoted(expression)) if expression in known else F.expr(expression)


def _text(column: Column) -> Column:
    """As trimmed text; null where empty."""
    trimmed = F.trim(F.make_valid_utf8(column.cast("string")))
    return F.when(trimmed != "", trimmed)


def _finite(number: Column) -> Column:
    """Null for what is no number or infinite."""
    return F.when(F.abs(number) < F.lit(float("inf")), number)


def _units_per_second(number: Column, time_format: str) -> Column:
    if time_format != "epoch_auto":
        return F.lit(_EPOCH_UNITS_PER_SECOND[time_format])
    units = F.lit(None).cast("int")
    for limit, unit in reversed(_EPOCH_MAGNITUDES):
        units = F.when(F.abs(number) < F.lit(limit), F.lit(unit)).otherwise(F.coalesce(units, F.lit(1_000_000_000)))
    return units


def _event_time(raw: Column, kind: t.DataType, time_format: str, time_zone: str) -> Column:
    """UTC timestamp of a time column, null where it cannot be read."""
    if isinstance(kind, t.TimestampType):
        return raw
    if isinstance(kind, t.TimestampNTZType | t.DateType):
        return F.to_utc_timestamp(raw.cast("timestamp"), time_zone)
    if time_format.startswith("epoch_"):
        # Decimal, since a double holds an epoch in seconds only to about a microsecond and a cast of it would round differently by magnitude.
        number = raw.cast("decimal(30, 9)")
        seconds = number / _units_per_second(number, time_format)
        in_range = F.abs(seconds) < F.lit(2**40)
        return F.when(in_range, F.timestamp_micros((seconds * 1_000_000).cast("bigint")))
    if time_format == "iso8601":
        text = raw.cast("string")
        # Spark reads a bare time of day as today's.
        parsed = F.when(text.rlike(_HAS_DATE), F.try_to_timestamp(text))
        # Z first, as most logs have it: it spares the expression.
        has_zone = text.endswith("Z") | ~text.rlike(_HAS_NO_ZONE)
        return F.when(has_zone, parsed).otherwise(F.to_utc_timestamp(parsed, time_zone))
    parsed = F.try_to_timestamp(raw.cast("string"), F.lit(time_format))
    unquoted = "".join(time_format.split("'")[::2])
    return parsed if any(letter in unquoted for letter in "XxZVzO") else F.to_utc_timestamp(parsed, time_zone)


def judge(records: DataFrame, config: IngestConfig, now: datetime, hidden: HiddenUsers | None = None) -> DataFrame:
    """Apply the column mapping and give each record its verdict. `now` (UTC) is the latest believable time, give or take a day.

    With `hidden` no user id leaves this function but as a pseudonym.
    """
    mapped = _mapped_fields(records, config)
    reason, detail = F.lit(None).cast("string"), F.lit(None).cast("string")
    for name, holds, shown in reversed(_verdicts(config, now, shows_filters=hidden is None)):
        reason = F.when(holds, F.lit(name)).otherwise(reason)
        safe = shown if hidden is None or name not in _SHOWS_A_VALUE else shape(shown)
        detail = F.when(holds, safe).otherwise(detail)
    is_long = F.col("_num_chars") > config.max_record_chars
    # Cut before it is made into text, which would hold a record of 100 MB several times.
    text = F.coalesce(F.col("_line"), F.when(is_long, _shortened(mapped)).otherwise(F.to_json("_fields")))
    raw = F.when(is_long, F.substring(text, 1, NUM_CHARS_KEPT)).otherwise(text)
    named = mapped.withColumns({"reason": reason, "detail": detail})
    judged = named.select(
        F.col("_source_file").alias("source_file"),
        "reason",
        F.when(F.col("reason").isNotNull(), F.make_valid_utf8(raw)).alias("raw"),
        "detail",
        "user_id",
        "item_id",
        "event_type",
        "event_time",
        "value",
        "session_key",
        "attributes",
        F.when(F.col("reason").isNull(), F.to_date("event_time")).alias("event_date"),
        F.lit(None).cast("string").alias("telling_name"),
    )
    if hidden is not None:
        judged = hide_users(judged, hidden.pseudonyms, list(config.columns.attributes), hidden.derived_attributes)
    return judged.withColumn("event_id", F.when(F.col("reason").isNull(), _event_id()))


@dataclass(frozen=True)
class HiddenUsers:
    """How to keep user ids out of all that is written."""

    pseudonyms: Pseudonyms
    derived_attributes: frozenset[str]
    """The attributes that are made of the user's own column."""


# The detail of these is a value of the data: under pseudonyms its shape alone is shown, for a shifted line may have the user there.
_SHOWS_A_VALUE = ("unparsable", "missing_time", "missing_value", "bad_time", "time_out_of_range", "future_time")


def _mapped_fields(records: DataFrame, config: IngestConfig) -> DataFrame:
    """The fields of an event by their names, and what the verdicts need besides."""
    known = set(records.columns)
    columns, missing = config.columns, config.missing
    attributes = [(name, _mapped(expression, known)) for name, expression in columns.attributes.items()]
    raw_time = _mapped(columns.time, known)
    time_kind = records.select(raw_time.alias("time")).schema["time"].dataType
    filtered = F.coalesce(
        *[F.when(~F.coalesce(F.expr(rule), F.lit(False)), F.lit(place)) for place, rule in enumerate(config.filters)],
        F.lit(None).cast("int"),
    )
    pairs = [
        column
        for name, value in attributes
        for column in (F.lit(name), filled(_text(value), missing.attributes.get(name, "keep")))
    ]
    item = _text(normalised_item(_text(_mapped(columns.item, known)), config.normalise_item))
    value = _mapped(columns.value, known)
    fields = [F.col(quoted(name)) for name in data_columns(records.columns)]
    is_header = F.col(IS_HEADER) if IS_HEADER in known else F.lit(False)
    return records.select(
        F.col(SOURCE_FILE).alias("_source_file"),
        F.col(UNPARSABLE).alias("_unparsable"),
        F.coalesce(is_header, F.lit(False)).alias("_is_header"),
        F.col(RAW).alias("_line"),
        # Made into text for the rejected alone.
        F.struct(*fields).alias("_fields"),
        _num_chars(records, config.max_record_chars).alias("_num_chars"),
        F.when(~F.col(UNPARSABLE), filtered).alias("_broken_rule"),
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


def _shortened(mapped: DataFrame) -> Column:
    """The record as JSON, each text in it cut to what is kept of the whole."""
    kind = mapped.schema["_fields"].dataType
    assert isinstance(kind, t.StructType)
    fields = []
    for entry in kind.fields:
        value = F.col("_fields").getField(entry.name)
        is_text = isinstance(entry.dataType, t.StringType)
        fields.append((F.substring(value, 1, NUM_CHARS_KEPT) if is_text else value).alias(entry.name))
    return F.to_json(F.struct(*fields))


def _num_chars(records: DataFrame, max_chars: int) -> Column:
    """Characters of a record, or of the text columns that its format's reader took apart; where its bytes, which are never fewer, are within
    `max_chars` already, the number of these: characters are counted byte by byte.
    """
    texts = [name for name in data_columns(records.columns) if isinstance(records.schema[name].dataType, t.StringType)]

    def total(size: Callable[[str], Column]) -> Column:
        return F.coalesce(size(RAW), sum((F.coalesce(size(quoted(name)), F.lit(0)) for name in texts), F.lit(0)))

    num_bytes = total(F.octet_length)
    return F.when(num_bytes <= max_chars, num_bytes).otherwise(total(F.length))


def _verdicts(config: IngestConfig, now: datetime, shows_filters: bool) -> list[tuple[str, Column, Column]]:
    """Why a record may not be accepted, the first that holds counts: reason, condition, detail.

    `shows_filters`: a broken rule is told by its text and not by its place, for a text may name a user.
    """
    nothing = F.lit(None).cast("string")
    size = F.concat(
        F.format_number("_num_chars", 0),
        F.lit(
            f" characters, more than ingest.max_record_chars {config.max_record_chars}; the first {NUM_CHARS_KEPT} are kept"
        ),
    )
    rules = [text if shows_filters else f"ingest.filters[{place}]" for place, text in enumerate(config.filters)]
    rule = F.coalesce(
        *[F.when(F.col("_broken_rule") == place, F.lit(text)) for place, text in enumerate(rules)], nothing
    )
    identity = F.concat_ws(" ", "user_id", "item_id", "event_type", "session_key")
    is_broken_text = F.contains(identity, F.lit(BROKEN_TEXT)) | F.contains(identity, F.lit("\x00"))
    raw_time = F.substring("_raw_time", 1, 200)
    latest = F.lit(now) + F.expr(f"INTERVAL {_FUTURE_TOLERANCE}")
    too_early = F.col("event_time") < F.lit(config.earliest)
    return [
        ("too_long", F.col("_num_chars") > config.max_record_chars, size),
        ("repeated_header", F.col("_is_header"), nothing),
        ("unparsable", F.col("_unparsable"), nothing),
        ("filtered", F.col("_broken_rule").isNotNull(), rule),
        ("unparsable", is_broken_text, F.concat(F.lit("bytes that are no text in: "), F.substring(identity, 1, 200))),
        ("missing_user", F.col("user_id").isNull(), nothing),
        ("missing_item", F.col("item_id").isNull(), nothing),
        ("missing_time", F.col("_raw_time").isNull(), nothing),
        *missing_verdicts(config),
        ("bad_time", F.col("event_time").isNull(), raw_time),
        ("time_out_of_range", too_early, raw_time),
        ("future_time", F.col("event_time") > latest, raw_time),
    ]


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


def laid_out(judged: DataFrame, num_slots: int) -> DataFrame:
    """The judged records shuffled and sorted once for all that follows: equal events side by side, each day's events together.

    `num_slots`: into how many parts a day is dealt, so that a day larger than a task can hold is not one task's.
    """
    rejected_slot = F.pmod(F.hash("source_file", "raw"), F.lit(NUM_REJECTED_SLOTS))
    slot = F.when(F.col("reason").isNull(), F.pmod(F.hash("event_id"), F.lit(num_slots))).otherwise(rejected_slot)
    placed = judged.withColumn("slot", slot)
    return placed.repartition("event_date", "slot").sortWithinPartitions(*_LAYOUT)


_LAYOUT = ("event_date", "slot", "event_id", "source_file")


def numbered(laid: DataFrame) -> DataFrame:
    """Laid-out records, each event with `occurrence`: 1 for the one that becomes the event, more for its duplicates in this batch.

    Of equal records the first by file name counts, so that a rerun keeps the same one. `occurrence_in_file` counts within the file.
    """
    *event, source_file = _LAYOUT
    of_the_same_event = Window.partitionBy(*event).orderBy(source_file)
    occurrence = F.row_number().over(of_the_same_event)
    # A window of its own for each file would sort all records a second time.
    num_in_earlier_files = F.rank().over(of_the_same_event) - 1
    return laid.withColumns({"occurrence": occurrence, "occurrence_in_file": occurrence - num_in_earlier_files})


def rejected_records(laid: DataFrame) -> DataFrame:
    """Rejected records with a `record_id` of their own: equal broken lines of one file are told apart by their occurrence."""
    rejected = laid.where(F.col("reason").isNotNull())
    # The first two columns say how the records lie already, and spare a shuffle.
    equal_records = Window.partitionBy("event_date", "slot", "source_file", "raw").orderBy("reason")
    occurrence = F.row_number().over(equal_records).cast("string")
    record_id = stable_id(F.col("source_file"), F.coalesce("raw", F.lit("")), occurrence)
    return rejected.select("source_file", "raw", "reason", "detail", record_id.alias("record_id"))
