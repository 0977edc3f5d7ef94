"""Raw files to judged records: the format's reader, and the configured expressions checked before they are used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import IngestConfig
from llm_spark.errors import UsageError, UserError
from llm_spark.logs import log
from llm_spark.tables import raw
from llm_spark.tables.raw import RawFile
from llm_spark.transforms import events, records
from llm_spark.transforms.events import HiddenUsers
from llm_spark.transforms.pseudonyms import Pseudonyms, derived_from

_NUM_LINES_SAMPLED = 1_000
_TIME_FORMATS = ("iso8601", "epoch_s", "epoch_ms", "epoch_us", "epoch_auto")


def judged_records(
    spark: SparkSession, files: Sequence[RawFile], config: IngestConfig, now: datetime, hidden: HiddenUsers | None
) -> DataFrame:
    """The records of the files with their verdicts. UsageError for an expression that does not fit the columns found."""
    found = _records(spark, files, config)
    known = [name for name in found.columns if not name.startswith("_")]
    for name, expression in events.mapped_expressions(config.columns).items():
        if expression not in known:
            _check_expression(found, f"ingest.columns.{name}", expression)
    for rule in config.filters:
        _check_expression(found, "ingest.filters", rule)
    return events.judge(found, config, now, hidden)


def hidden_users(spark: SparkSession, config: IngestConfig, pseudonyms: Pseudonyms | None) -> HiddenUsers | None:
    """How ids are to be kept out of the tables. UsageError where item, type or value are made of the user's own column."""
    if pseudonyms is None:
        return None
    mapped = events.mapped_expressions(config.columns)
    paths = {name: _referenced(spark, f"ingest.columns.{name}", text) for name, text in mapped.items()}
    derived = [name for name in mapped if name != "user" and derived_from(paths["user"], paths[name])]
    for name in ("item", "type", "value"):
        if name in derived:
            raise UsageError(
                f"ingest.columns.{name} '{mapped[name]}' is made of the user's column and would show the id that "
                "ingest.pseudonymise hides: choose another column"
            )
    prefix = "attributes."
    return HiddenUsers(pseudonyms, frozenset(name.removeprefix(prefix) for name in derived if name.startswith(prefix)))


def check_time_format(spark: SparkSession, config: IngestConfig) -> None:
    """UsageError unless Spark understands the time format and the zone."""
    known = config.time_format in _TIME_FORMATS
    shown = F.lit("") if known else F.date_format(F.current_timestamp(), config.time_format)
    try:
        spark.range(1).select(shown, F.to_utc_timestamp(F.current_timestamp(), config.time_zone)).collect()
    except Exception as error:
        raise UsageError(
            f"ingest.time_format '{config.time_format}' (zone '{config.time_zone}') is not understood: "
            f"give {', '.join(_TIME_FORMATS)}, or a Spark datetime pattern such as yyyy-MM-dd HH:mm:ss"
        ) from error


def _records(spark: SparkSession, files: Sequence[RawFile], config: IngestConfig) -> DataFrame:
    if config.format == "csv":
        return raw.read_csv(spark, files, config.csv_delimiter, config.csv_multiline)
    if config.format == "parquet":
        return raw.read_parquet(spark, files)
    lines = raw.read_text(spark, files)
    if config.format == "access_log":
        return records.parse_access_log(lines, config.max_record_chars)
    return _json_records(spark, lines, config)


def _json_records(spark: SparkSession, lines: DataFrame, config: IngestConfig) -> DataFrame:
    keys = F.explode(F.json_object_keys(records.bounded(config.max_record_chars)))
    found = sorted(row[0] for row in lines.limit(_NUM_LINES_SAMPLED).select(keys.alias("key")).distinct().collect())
    mapped = events.mapped_expressions(config.columns)
    paths: dict[tuple[str, ...], None] = {}
    for name, expression in {**mapped, **{f"filter {rule}": rule for rule in config.filters}}.items():
        wanted = [(expression,)] if expression in found else _referenced(spark, f"ingest.columns.{name}", expression)
        for path in wanted:
            absent = bool(found) and path[0] not in found
            if absent and name in ("user", "item", "time"):
                raise UsageError(
                    f"ingest.columns.{name}: '{path[0]}' is not among the fields found: {', '.join(found)}"
                )
            if absent:
                log.warning("ingest: '%s' (%s) is in none of the first %d records", path[0], name, _NUM_LINES_SAMPLED)
            paths[path] = None
    return records.parse_json_lines(lines, paths, config.max_record_chars)


def _referenced(spark: SparkSession, key: str, expression: str) -> list[tuple[str, ...]]:
    try:
        return raw.referenced_columns(spark, expression)
    except UserError as error:
        raise UsageError(f"{key}: {error}") from error


def _check_expression(found: DataFrame, key: str, expression: str) -> None:
    known = [name for name in found.columns if not name.startswith("_")]
    folded = {name.lower() for name in known}
    # Spark takes an unknown `user` for the account it runs under.
    for path in _referenced(found.sparkSession, key, expression):
        if path[0].lower() not in folded:
            raise UsageError(f"{key}: '{path[0]}' is not among the columns found: {', '.join(known)}")
    try:
        checked = found.select(F.expr(expression))
    except (AnalysisException, ParseException) as error:
        line = next(line for line in str(error).splitlines() if line.strip())
        raise UsageError(f"{key}: '{expression}' is no valid Spark SQL expression: {line[:200]}") from error
    # Spark compares text with a whole number by cutting the text's decimals off: '0.85' > 0 would be false.
    truncated = re.search(r"cast\((\w+)#\d+L? as (?:int|bigint)\)", checked._jdf.queryExecution().analyzed().toString())
    if truncated is not None and not re.search(r"(?i)\b(int|integer|bigint|long)\b", expression):
        raise UsageError(
            f"{key}: '{expression}' compares the text column {truncated[1]} with a whole number: "
            f"write double({truncated[1]}) or int({truncated[1]})"
        )
