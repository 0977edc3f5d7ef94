"""Which columns the settings of ingest ask for, which of them the files have, and what it means where they have not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.config import IngestConfig
from llm_spark.errors import UsageError, UserError
from llm_spark.tables import raw
from llm_spark.transforms.events import mapped_expressions
from llm_spark.transforms.records import text_schema

_REQUIRED = ("user", "item", "time")
_MAX_NAMES_SHOWN = 50
_ODD_NAME = re.compile(r"\w+(?:[ -]\w+)+|\w*[^\W\x00-\x7f]\w*")
"""A name with blanks, hyphens or letters beyond ASCII in it, which SQL does not take for one."""


@dataclass(frozen=True)
class Found:
    """The columns of the files, or the fields of their JSON objects; `by_case`: whether names are told apart by it."""

    names: list[str]
    by_case: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.names if self.by_case else name.lower() in {other.lower() for other in self.names}

    def absent(self, name: str, config: IngestConfig) -> str:
        """That the name is none of these, and which these are; under pseudonyms how many, for a file without a header shows its first record."""
        what = "fields" if self.by_case else "columns"
        if config.pseudonymise:
            remedy = "does a file lack its header line?" if config.format == "csv" else f"check the {what}' names"
            return f"'{name}' is not among the {len(self.names)} {what} found: {remedy}"
        more = f" and {len(self.names) - _MAX_NAMES_SHOWN} more" if len(self.names) > _MAX_NAMES_SHOWN else ""
        return f"'{name}' is not among the {what} found: {', '.join(self.names[:_MAX_NAMES_SHOWN])}{more}"


@dataclass(frozen=True)
class Wanted:
    """An expression of the settings and the columns that it names."""

    key: str
    text: str
    paths: list[tuple[str, ...]]
    is_required: bool = False
    is_filter: bool = False


@dataclass(frozen=True)
class Lacking:
    """What no file has of what is wanted."""

    columns: dict[str, list[str]]
    """Column -> the settings that name it."""
    problem: str = ""
    """Why it cannot be done without; empty where it can."""
    is_of_required: bool = False


def wanted_columns(spark: SparkSession, config: IngestConfig, found: Found) -> list[Wanted]:
    """All expressions of the settings. UsageError for one that does not parse and is no name of a column."""
    wanted = []
    for name, text in mapped_expressions(config.columns).items():
        key = f"ingest.columns.{name}"
        wanted.append(Wanted(key, text, _paths(spark, key, text, found), is_required=name in _REQUIRED))
    filters = [(rule, referenced(spark, "ingest.filters", rule)) for rule in config.filters]
    return wanted + [Wanted("ingest.filters", rule, paths, is_filter=True) for rule, paths in filters]


def _paths(spark: SparkSession, key: str, text: str, found: Found) -> list[tuple[str, ...]]:
    if text in found.names:
        return [(text,)]
    is_odd = _ODD_NAME.fullmatch(text) is not None
    try:
        paths = referenced(spark, key, text)
    except UsageError:
        if not is_odd:
            raise
        return [(text,)]
    return [(text,)] if is_odd and any(path[0] not in found for path in paths) else paths


def referenced(spark: SparkSession, key: str, expression: str) -> list[tuple[str, ...]]:
    """The columns that an expression names. UsageError where it does not parse."""
    try:
        return raw.referenced_columns(spark, expression)
    except UserError as error:
        raise UsageError(f"{key}: {error}") from error


def lacking_columns(
    spark: SparkSession, wanted: Iterable[Wanted], found: Found, config: IngestConfig, needs_all: bool
) -> Lacking:
    """What the files lack. Logs change, so that a column may be missing tonight: a problem is an expression for user, item or time of whose
    columns none is there; a filter of which none is there and that lets no record pass without; and with `needs_all` any such expression.
    """
    lacking: dict[str, list[str]] = {}
    for wish in wanted:
        absent = [path[0] for path in wish.paths if path[0] not in found]
        # Files that are all empty have no columns.
        if found.names and absent and len(absent) == len(wish.paths):
            is_needed = needs_all or wish.is_required or (wish.is_filter and not _passes_nulls(spark, wish))
            if is_needed:
                return Lacking({}, f"{wish.key}: {found.absent(absent[0], config)}", wish.is_required)
        for name in absent:
            lacking.setdefault(name, []).append(wish.key)
    return Lacking(lacking)


def _passes_nulls(spark: SparkSession, rule: Wanted) -> bool:
    schema = text_schema(rule.paths)
    nulls = spark.createDataFrame([(None,) * len(schema)], schema)
    return not nulls.where(F.expr(rule.text)).isEmpty()
