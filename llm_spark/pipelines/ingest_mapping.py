"""Raw files to judged records: the format's reader, and the configured expressions checked before they are used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import IngestConfig
from llm_spark.errors import UsageError
from llm_spark.pipelines.ingest_columns import Found, Lacking, Wanted, lacking_columns, referenced, wanted_columns
from llm_spark.schemas.records import RAW, data_columns
from llm_spark.tables import raw
from llm_spark.tables.raw import RawFile
from llm_spark.tables.raw_csv import read_csv
from llm_spark.tables.raw_parquet import read_parquet
from llm_spark.transforms import events, records
from llm_spark.transforms.events import HiddenUsers
from llm_spark.transforms.pseudonyms import Pseudonyms, derived_from

_NUM_LINES_SAMPLED = 1_000
_TIME_FORMATS = ("iso8601", "epoch_s", "epoch_ms", "epoch_us", "epoch_auto")
_OF_THE_MOMENT = ("CurrentTimestamp", "CurrentDate", "CurrentTime", "Now", "LocalTimestamp")
_OF_THE_FILE = ("InputFileName", "InputFileBlockStart", "InputFileBlockLength")


@dataclass(frozen=True)
class Judged:
    """Records with their verdicts."""

    records: DataFrame
    lacking: dict[str, list[str]]
    """Column that the settings name and no file has, so that it is null in every record -> these settings."""


def judged_records(
    spark: SparkSession,
    files: Sequence[RawFile],
    config: IngestConfig,
    now: datetime,
    hidden: HiddenUsers | None,
    is_first: bool,
) -> Judged:
    """The records of the files with their verdicts. UsageError for an expression that does not fit the columns found.

    A column that no file has is null, unless it cannot be done without (see `lacking_columns`). `is_first`: nothing was ingested before, so
    that an optional column that is nowhere is a mistake.
    """
    if config.format == "jsonl":
        parts, wanted, lacking = _json_records(spark, files, config, is_first)
    else:
        parts = _parts(spark, files, config)
        found = _found(parts)
        wanted = wanted_columns(spark, config, found)
        lacking = lacking_columns(spark, wanted, found, config, needs_all=is_first)
    if lacking.problem:
        raise UsageError(lacking.problem)
    # Each part by itself: what is made of a record does not depend on the types of those beside it.
    judged = []
    for part in parts:
        completed = _completed(part, wanted)
        for wish in wanted:
            if wish.text not in data_columns(completed.columns):
                _check_expression(completed, wish, config, own=_found([part]))
        judged.append(events.judge(completed, config, now, hidden))
    return Judged(reduce(DataFrame.unionByName, judged), lacking.columns)


def judged_torn_records(torn: DataFrame, config: IngestConfig, now: datetime, hidden: HiddenUsers | None) -> DataFrame:
    """Records that were read before they were whole, with the verdicts that they had then."""
    wanted = wanted_columns(torn.sparkSession, config, _found([torn]))
    return events.judge(_completed(torn, wanted), config, now, hidden)


def hidden_users(spark: SparkSession, config: IngestConfig, pseudonyms: Pseudonyms | None) -> HiddenUsers | None:
    """How ids are to be kept out of the tables. UsageError where item, type or value are made of the user's own column."""
    if pseudonyms is None:
        return None
    mapped = events.mapped_expressions(config.columns)
    # A name that does not parse, or as something else, stands for itself besides.
    paths = {name: [*referenced(spark, f"ingest.columns.{name}", text), (text,)] for name, text in mapped.items()}
    derived = [name for name in mapped if name != "user" and derived_from(paths["user"], paths[name])]
    for name in ("item", "type", "value"):
        if name in derived and name not in config.pseudonymise_also:
            remedy = "choose another column" + ("" if name == "value" else ", or add it to ingest.pseudonymise_also")
            raise UsageError(
                f"ingest.columns.{name} '{mapped[name]}' is made of the user's column and would show the id that "
                f"ingest.pseudonymise hides: {remedy}"
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


def _parts(spark: SparkSession, files: Sequence[RawFile], config: IngestConfig) -> list[DataFrame]:
    """The records of all formats whose columns are known before they are asked for."""
    if config.format == "csv":
        return [read_csv(spark, files, config.csv_delimiter, config.csv_multiline)]
    if config.format == "parquet":
        return read_parquet(spark, files)
    return [records.parse_access_log(raw.read_text(spark, files), config.max_record_chars)]


def _json_records(
    spark: SparkSession, files: Sequence[RawFile], config: IngestConfig, is_first: bool
) -> tuple[list[DataFrame], list[Wanted], Lacking]:
    lines = raw.read_text(spark, files)
    found = _fields(lines.limit(_NUM_LINES_SAMPLED), config)
    wanted = wanted_columns(spark, config, found)
    lacking = lacking_columns(spark, wanted, found, config, needs_all=False)
    # The first lines may be of a kind that lacks what others have. A mistake in new settings is told at once.
    if (lacking.problem and not (is_first and lacking.is_of_required)) or lacking.columns:
        others = lines if lacking.problem else lines.where(_may_have(lacking.columns))
        found = Found(sorted({*found.names, *_fields(others, config).names}), by_case=True)
        wanted = wanted_columns(spark, config, found)
        lacking = lacking_columns(spark, wanted, found, config, needs_all=False)
    paths = dict.fromkeys(path for wish in wanted for path in wish.paths)
    return [records.parse_json_lines(lines, paths, config.max_record_chars)], wanted, lacking


def _fields(lines: DataFrame, config: IngestConfig) -> Found:
    keys = F.explode(F.json_object_keys(records.bounded(config.max_record_chars)))
    return Found(sorted(row[0] for row in lines.select(keys.alias("key")).distinct().collect()), by_case=True)


def _may_have(fields: Iterable[str]) -> Column:
    """Whether a line holds the name of one of the fields, as JSON may spell it: a look at the bytes spares nearly all lines the parsing."""
    spelt = {f'"{name}"' for name in fields} | {json.dumps(name) for name in fields}
    return reduce(Column.__or__, [F.contains(F.col(RAW), F.lit(text)) for text in sorted(spelt)])


def _found(parts: Sequence[DataFrame]) -> Found:
    return Found(list(dict.fromkeys(name for part in parts for name in data_columns(part.columns))))


def _completed(part: DataFrame, wanted: Sequence[Wanted]) -> DataFrame:
    """With nulls for the wanted columns that it lacks."""
    there = Found(part.columns)
    lacking = {path[0].lower(): path[0] for wish in wanted for path in wish.paths if path[0] not in there}
    paths = [(lacking[path[0].lower()], *path[1:]) for wish in wanted for path in wish.paths if path[0] not in there]
    nulls = {entry.name: F.lit(None).cast(entry.dataType) for entry in records.text_schema(paths).fields}
    return part.withColumns(nulls) if nulls else part


def _check_expression(part: DataFrame, wish: Wanted, config: IngestConfig, own: Found) -> None:
    key, expression = wish.key, wish.text
    try:
        checked = part.select(F.expr(expression))
    except (AnalysisException, ParseException) as error:
        # Spark names the columns that there are.
        line = next(line for line in str(error).splitlines() if line.strip())
        told = (error.getCondition() or "") if config.pseudonymise else line[:200]
        raise UsageError(f"{key}: '{expression}' is no valid Spark SQL expression: {told}") from error
    analyzed: Any = checked._jdf.queryExecution().analyzed()
    # Spark compares text with a whole number by cutting the text's decimals off: '0.85' > 0 would be false.
    truncated = re.search(r"cast\((\w+)#\d+L? as (?:int|bigint)\)", analyzed.toString())
    is_text = truncated is not None and truncated[1] in own
    if truncated is not None and is_text and not re.search(r"(?i)\b(int|integer|bigint|long)\b", expression):
        raise UsageError(
            f"{key}: '{expression}' compares the text column {truncated[1]} with a whole number: "
            f"write double({truncated[1]}) or int({truncated[1]})"
        )
    if not wish.is_filter and (volatile := next(_volatile(analyzed.expressions().apply(0)), None)):
        raise UsageError(
            f"{key}: '{expression}' has another value each time ({volatile}), so that a record that is read again would be another event: "
            "make it of the record's own columns"
        )


def _volatile(expression: Any) -> Iterator[str]:
    """The functions in a Spark expression that do not depend on the record alone."""
    kind, children = expression.getClass().getSimpleName(), expression.children()
    below = [children.apply(place) for place in range(children.size())]
    is_source = not expression.deterministic() and all(child.deterministic() for child in below)
    if kind in _OF_THE_MOMENT or (is_source and kind not in _OF_THE_FILE):
        yield expression.prettyName()
    for child in below:
        yield from _volatile(child)
