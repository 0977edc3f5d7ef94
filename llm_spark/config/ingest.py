"""Settings of ingest: where the raw files are, which column is what, and what is done to a record as it is read."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from omegaconf import MISSING

from llm_spark.config.checks import one_of, require


@dataclass(frozen=True)
class ColumnsConfig:
    """Where each field of an event stands in a record: a column name, or any Spark SQL expression over the columns."""

    user: str = MISSING
    """Who did it. For logs without users give the session column: each session is then a user of its own."""
    item: str = MISSING
    """What it was done to: the thing whose next occurrence is predicted."""
    time: str = MISSING
    """When; read as `ingest.time_format` says."""
    type: str | None = None
    """What kind of event; `event` for all where not given."""
    value: str | None = None
    """A number that belongs to the event, such as a price or a weight."""
    session: str | None = None
    """A session id that the log already has; the inactivity gap is then not used."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Further fields to keep, name: column or expression."""


MISSING_RULES = ("keep", "reject", "drop", "forward", "interpolate")


@dataclass(frozen=True)
class MissingConfig:
    """What to do where a field is missing (empty, or blank, or for `value` no finite number): a rule's name, or else the constant to fill in.

    reject: the record goes to events_rejected as `missing_<column>`, a fault that ingest.max_rejected_fraction counts. drop: likewise, but no
    fault. keep: it stays missing. A constant that is spelt like a rule is written into the column's expression: `coalesce(action, 'drop')`.
    """

    user: str = "reject"
    """reject, drop, or a constant: all records without a user are then one user's."""
    item: str = "reject"
    """reject, drop, or a constant."""
    time: str = "reject"
    """reject or drop. A time that cannot be read is a fault under either."""
    type: str = "event"
    """reject, drop, or a constant."""
    value: str = "keep"
    """keep, reject, drop, a constant number, forward or interpolate. The last three leave `events` and `sessions` as logged and fill in
    `sequences.values` and what is scored. forward: the user's last known value in the order of the history. interpolate: within one session the
    line in time between two known values, where no position to predict in validation or test stands between; elsewhere as forward. Nothing is
    ever filled backwards: before a user's first known value it stays missing. Not interpolate with model.outcomes, whose answers it would tell
    in training."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Attribute: keep (as where not named), reject, drop, or a constant."""

    def __post_init__(self) -> None:
        _missing_rule("user", self.user, ("reject", "drop"), "a constant")
        _missing_rule("item", self.item, ("reject", "drop"), "a constant")
        _missing_rule("time", self.time, ("reject", "drop"))
        _missing_rule("type", self.type, ("reject", "drop"), "a constant")
        _missing_rule("value", self.value, MISSING_RULES, "a constant number")
        for name, rule in self.attributes.items():
            _missing_rule(f"attributes.{name}", rule, ("keep", "reject", "drop"), "a constant")
        # The reason says missing_attribute for all of them, and a reason is a fault or it is not.
        both = {"reject", "drop"} <= set(self.attributes.values())
        require(not both, "ingest.missing.attributes", self.attributes, "reject some or drop some, not both")


def _missing_rule(column: str, rule: str, rules: tuple[str, ...], constant: str = "") -> None:
    if rule in rules:
        return
    key, choices = f"ingest.missing.{column}", [*rules, constant] if constant else [*rules]
    remedy = f"give {', '.join(choices[:-1])} or {choices[-1]}"
    # What is nearly a rule's name would otherwise be filled in as a constant, in every record.
    near = difflib.get_close_matches(rule.strip().lower(), MISSING_RULES, n=1, cutoff=0.8)
    if near and near[0] != rule:
        remedy = f"'{near[0]}' is not spelt so; {remedy}"
    is_constant = bool(constant and rule.strip() and not near)
    if constant == "a constant number":
        is_constant = _is_finite_number(rule)
    require(is_constant, key, rule, remedy)


def _is_finite_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class NormaliseItemConfig:
    """Make item ids of one thing equal, after `ingest.columns.item` and before the test for a missing item; in the order of these fields.

    Plain spaces around an id are trimmed always, before and after.
    """

    strip: bool = False
    """Remove white space of every kind (tabs, line ends, no-break spaces, byte order marks) around it."""
    replace: list[list[str]] = field(default_factory=list)
    """Pairs of a regular expression (Java's) and its replacement ($1 for a group), each applied everywhere in the id, in this order."""
    case_fold: bool = False
    """Make ids that differ only in case equal: written in lower case."""

    def __post_init__(self) -> None:
        for pair in self.replace:
            ok = len(pair) == 2 and pair[0] != ""
            require(ok, "ingest.normalise_item.replace", pair, "give pairs: [regular expression, replacement]")


@dataclass(frozen=True)
class IngestConfig:
    """From raw files to the tables `events` and `events_rejected`."""

    paths: list[str] = MISSING
    """Files, folders or globs, on any file system that Spark reaches."""
    format: str = MISSING
    """csv, jsonl, parquet or access_log (combined log format); text may be gzip-compressed."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    time_format: str = "iso8601"
    """iso8601, epoch_s, epoch_ms, epoch_us, epoch_auto, or a Spark datetime pattern such as `yyyy-MM-dd HH:mm:ss`.

    epoch_auto tells the unit of each number by its magnitude: below 10^11 seconds (to the year 5138), below 10^14 milliseconds (from March
    1973), below 10^17 microseconds, from there on nanoseconds. For logs whose writers do not agree."""
    time_zone: str = "UTC"
    """Zone of times that do not carry one. A local time that a clock shows twice is the first, still in summer time; one that it skips is
    taken as if the clock had not been put forward yet."""
    filters: list[str] = field(default_factory=list)
    """SQL expressions over the columns; a record for which one is not true goes to events_rejected as `filtered`."""
    normalise_item: NormaliseItemConfig = field(default_factory=NormaliseItemConfig)
    missing: MissingConfig = field(default_factory=MissingConfig)
    csv_delimiter: str = ","
    csv_multiline: bool = False
    """Let a quoted CSV field go on over line ends. Off, since a file is then one task's work, and one quote that is never closed swallows all
    records after it; without it such a quote costs its own line."""
    max_record_chars: int = 1_000_000
    """A record of more characters is rejected as too_long, with its beginning kept: it is no event, and many such would fill the memory."""
    pseudonymise: bool = False
    """Put a keyed hash in the place of each user id: no table, file name or log line then shows whose a record is (limits: see
    `pseudonymise_also`). The key comes from the environment variable LLM_SPARK_PSEUDONYM_KEY or from `pseudonym_key_file`; who loses it
    cannot add to the warehouse any more."""
    pseudonymise_also: list[str] = field(default_factory=list)
    """Mapped columns whose whole value is a user's id, such as a friend's: item, type, session, attributes.<name>. Hashed whole under the same
    key, so that they join with user_id; session always is. To be given from the first ingest on.

    In other columns the id of the record's own user alone is replaced, as it is or URL-encoded. What stays: ids of other users there, an id
    of fewer than 5 characters, an id in another spelling (base64, say)."""
    pseudonym_key_file: str | None = None
    """A file that holds the key, 32 bytes at least, and that none but its owner may read."""
    earliest_time: str = "1990-01-01"
    """Events before this UTC date are rejected as time_out_of_range: an epoch of 0 is a fault, not a date."""
    max_rejected_fraction: float = 1.0
    """Above this share of records rejected for any reason but `filtered` and what ingest.missing drops, ingest writes no event and exits 3."""

    def __post_init__(self) -> None:
        if self.format != MISSING:
            one_of("ingest.format", self.format, ("csv", "jsonl", "parquet", "access_log"))
        require(
            0 <= self.max_rejected_fraction <= 1, "ingest.max_rejected_fraction", self.max_rejected_fraction, "0 to 1"
        )
        require(self.max_record_chars > 0, "ingest.max_record_chars", self.max_record_chars, "give a number above 0")
        require(len(self.csv_delimiter) == 1, "ingest.csv_delimiter", self.csv_delimiter, "give one character")
        try:
            _ = self.earliest
        except ValueError:
            require(False, "ingest.earliest_time", self.earliest_time, "write a UTC date such as 1990-01-01")
        optional = [name for name in ("type", "session") if getattr(self.columns, name) is not None]
        hidable = ["item", *optional, *(f"attributes.{name}" for name in self.columns.attributes)]
        for name in self.pseudonymise_also:
            remedy = f"it is none of the columns that can be hidden: {', '.join(hidable)}"
            require(name in hidable, "ingest.pseudonymise_also", name, remedy)
        for name, rule, column in (
            ("type", self.missing.type in ("reject", "drop"), self.columns.type),
            ("value", self.missing.value != "keep", self.columns.value),
        ):
            remedy = f"it is missing in every record, for ingest.columns.{name} is not given: give it, or take this out"
            require(not rule or column is not None, f"ingest.missing.{name}", getattr(self.missing, name), remedy)
        for name, text in self.missing.attributes.items():
            known = ", ".join(self.columns.attributes) or "none"
            remedy = f"it is none of ingest.columns.attributes ({known})"
            require(name in self.columns.attributes, f"ingest.missing.attributes.{name}", text, remedy)

    @property
    def earliest(self) -> datetime:
        """`earliest_time`, read as UTC where it carries no zone."""
        time = datetime.fromisoformat(str(self.earliest_time))
        return time if time.tzinfo else time.replace(tzinfo=UTC)
