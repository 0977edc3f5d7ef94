"""sessionize: events -> sessions, sessions_set_aside.

Events that were added since the sessions were made change only the sessions that they fall into or join up; these are rebuilt, and put in
place by one commit that replaces the parts of the table (a month of a bucket of users) that hold them. Where what was added cannot be told
(events were removed, the log is gone, settings changed), all sessions are rebuilt. Both ways give the same tables. What is set aside lies in
parts of its own table in the same way, and is written first; the sessions note its version, so that a run killed in between is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config, SessionizeConfig
from llm_spark.errors import DataError, UsageError, UserError
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.features import checked_features, features_note
from llm_spark.schemas import EVENTS, SESSIONS, SESSIONS_SET_ASIDE
from llm_spark.tables.changes import additions, read_additions
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.late_events import events_within, spans, touched
from llm_spark.transforms.quality import cleaned_sessions, kept_sessions, sessions_set_aside
from llm_spark.transforms.sessions import RULES_VERSION, user_bucket
from llm_spark.transforms.sessions import sessionize as sessionize_events

# Above this share of new events a rebuild of everything is the cheaper way.
_REBUILD_SHARE = 0.2
_MAX_DATES_NAMED = 4_000
_NUM_LOGGED = "num_events + num_collapsed"
_MAX_ROWS_SENT = 1_000_000
_NEW_EVENT_COLUMNS = ["user_id", "session_key", "event_time"]


def sessionize(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Bring the sessions up to date with the events; nothing to do if they were made from this version of them with these settings."""
    work = _Work(
        warehouse, config.sessionize, config.ingest.columns.session is not None, checked_features(config), account
    )
    made = work.made()
    if made is not None and work.is_made(made):
        account.nothing_to_do = f"sessions are those of events v{work.events_version} already"
        return
    _check_zone(warehouse, config.sessionize.day_cut)
    account.begin(f"take in the events up to v{work.events_version}")
    with progress("sessionize"):
        reason = _update(work, made) if made is not None else "there are none yet"
        if account.nothing_to_do:
            return
        if reason:
            _rebuild(work)
            if made is not None:
                account.remarks.append(f"all sessions were rebuilt: {reason}")
        if work.sets_aside:
            _tell_set_aside(work)
    account.read = {EVENTS.name: work.events_version}
    account.wrote(warehouse, *work.tables)


class _Work:
    """What one run works on: the events of one version, and under which settings."""

    def __init__(
        self, warehouse: Warehouse, config: SessionizeConfig, by_key: bool, features: list[str], account: Account
    ) -> None:
        self.warehouse, self.config, self.by_key, self.account = warehouse, config, by_key, account
        self.features = features
        log = warehouse.log(EVENTS)
        # A table that is deleted and made anew counts its versions from 0 again.
        self.events_version, self.events_table = log.version, log.table_id
        self.settings = {"rules": RULES_VERSION, "by_key": by_key, **asdict(config), **features_note(features)}
        self.events = warehouse.read(EVENTS, self.events_version)
        self.sets_aside = config.bots.any_limit or warehouse.exists(SESSIONS_SET_ASIDE)
        self.tables = [SESSIONS_SET_ASIDE, SESSIONS] if self.sets_aside else [SESSIONS]
        self._before: dict[str, int] = {}

    @cached_property
    def num_events(self) -> int:
        return self.events.count()  # from the statistics in the log, without reading a row

    def origin(self) -> dict[str, Any]:
        return {
            "events": self.events_version,
            "events_table": self.events_table,
            "num_events": self.num_events,
            "settings": self.settings,
        }

    def is_made(self, made: dict[str, Any]) -> bool:
        """Whether the tables were made of these events under these settings. Later commits that changed no row do not count."""
        changed = self.warehouse.data_version(EVENTS, self.events_version) > made.get("events", -1)
        same = (made.get("events_table"), made.get("settings")) == (self.events_table, self.settings)
        return same and not changed

    def made(self) -> dict[str, Any] | None:
        """What the tables were made from; None where they are not there or not of one run."""
        made = self.warehouse.origin(SESSIONS)
        return made if made is not None and made.get("set_aside") == self._set_aside_version() else None

    def _set_aside_version(self) -> int | None:
        # Delta leaves out a commit that changes nothing, so the table's own origin would not tell.
        there = self.sets_aside and self.warehouse.exists(SESSIONS_SET_ASIDE)
        return self.warehouse.data_version(SESSIONS_SET_ASIDE) if there else None

    def sessions(self, events: DataFrame) -> DataFrame:
        """The sessions of `events`, cleaned, with the `reason` to set them aside."""
        sessions = sessionize_events(events, self.config, self.by_key, self.features)
        return cleaned_sessions(sessions, self.config)

    def stored(self) -> DataFrame:
        """The sessions that are there, with the `reason` to set them aside."""
        none = {"reason": F.lit(None).cast("string"), "detail": F.lit(None).cast("string")}
        kept = self.warehouse.read(SESSIONS, self.warehouse.version(SESSIONS)).withColumns(none)
        if not self.sets_aside:
            return kept
        aside = self.warehouse.read(SESSIONS_SET_ASIDE, self.warehouse.version(SESSIONS_SET_ASIDE))
        return kept.unionByName(aside)

    def write(self, sessions: DataFrame, parts: str | None = None) -> None:
        """Put `sessions` in place of all, or of those in the `parts` (a predicate) of the tables."""
        for table in self.tables:
            self._before[table.name] = self.warehouse.version(table) if self.warehouse.exists(table) else 0
            rows = kept_sessions(sessions) if table is SESSIONS else sessions_set_aside(sessions)
            origin = self.origin()
            if table is SESSIONS and self.sets_aside:
                origin["set_aside"] = self._set_aside_version()
            if parts is None:
                self.warehouse.replace(table, rows, origin)
            else:
                self.warehouse.replace_where(table, rows, parts, origin)

    def undo(self) -> None:
        for table in self.tables:
            if self.warehouse.version(table) > self._before[table.name]:
                self.warehouse.undo(table)


@dataclass(frozen=True)
class _Sums:
    """Sessions, those of them that are kept, the events that were logged for them, and those of these that were collapsed."""

    num_sessions: int
    num_kept: int
    num_events: int
    num_collapsed: int

    @classmethod
    def of(cls, sessions: DataFrame) -> _Sums:
        row = sessions.agg(
            F.count("*").alias("rows"),
            F.count_if(F.col("reason").isNull()).alias("kept"),
            F.coalesce(F.sum(F.expr(_NUM_LOGGED)), F.lit(0)).alias("events"),
            F.coalesce(F.sum("num_collapsed"), F.lit(0)).alias("collapsed"),
        ).first()
        assert row is not None
        return cls(row["rows"], row["kept"], row["events"], row["collapsed"])


def _rebuild(work: _Work) -> None:
    if work.num_events == 0:
        raise DataError("the events table is empty: run `llm-spark ingest` on logs that hold events")
    sessions = work.sessions(work.events)
    if work.sets_aside:
        # Written twice.
        sessions = sessions.persist(StorageLevel.MEMORY_AND_DISK)
    work.write(sessions)
    sessions.unpersist()
    found = _Sums.of(work.stored())
    _check_events(work, work.num_events, found.num_events)
    _require_people(work, found.num_kept)
    work.account.rows_in = {"events": work.num_events}
    work.account.rows_out = {"sessions": found.num_kept}
    _tell_collapsed(work, found)


def _require_people(work: _Work, num_kept: int) -> None:
    if num_kept == 0:
        work.undo()
        raise DataError(f"all {work.num_events:,} events are in sessions of bots: raise the limits of sessionize.bots")


def _check_events(work: _Work, num_in: int, num_out: int) -> None:
    if num_in != num_out:
        work.undo()
    lost = abs(num_in - num_out)
    severity = "error" if lost else "info"
    detail = f"{num_in} events went in, {num_out} came out"
    work.account.checks.append(Check("events_lost_in_sessions", SESSIONS.name, lost, 0.0, severity, detail))
    if lost:
        raise UserError(f"{num_in} events went into sessionize and {num_out} came out: run it again")


def _update(work: _Work, made: dict[str, Any]) -> str | None:
    """Rebuild what the new events touch; returns why that is not possible, and then has changed nothing."""
    warehouse, account = work.warehouse, work.account
    if made.get("settings") != work.settings:
        return "settings changed"
    if made.get("events_table") != work.events_table:
        return "the table events was made anew"
    if any(warehouse.is_laid_out_otherwise(table) for table in work.tables if warehouse.exists(table)):
        return "an earlier version of this program made them, with other columns"
    if work.config.bots.max_events_per_day:
        return "sessionize.bots.max_events_per_day looks at whole days of a user"
    added = additions(warehouse, EVENTS, made["events"], work.events_version)
    if added is None:
        return f"what was added to events since v{made['events']} cannot be told"
    if added.num_rows == 0:
        account.nothing_to_do = f"no event was added since events v{made['events']}"
        return None
    if made["num_events"] + added.num_rows != work.num_events:
        return f"events holds {work.num_events:,} rows, of which {made['num_events']:,} were there and {added.num_rows:,} are new"
    if added.num_rows > _REBUILD_SHARE * work.num_events:
        return f"{added.num_rows:,} of {work.num_events:,} events are new"
    new_events = read_additions(warehouse, EVENTS, added, _NEW_EVENT_COLUMNS)
    if new_events is None:
        return f"files added to events since v{made['events']} are gone"
    with _rebuilt(work, new_events) as plan:
        if plan.num_events_before + added.num_rows != plan.num_events_after:
            return (
                f"the touched sessions held {plan.num_events_before:,} events, and with {added.num_rows:,} new ones "
                f"they hold {plan.num_events_after:,}"
            )
        before = _Sums.of(plan.all_sessions.where(plan.parts))
        kept = plan.all_sessions.where(plan.parts).join(plan.outdated, "session_id", "left_anti")
        work.write(kept.unionByName(plan.sessions), plan.parts)
    after = _Sums.of(work.stored().where(plan.parts))
    _check_events(work, before.num_events + added.num_rows, after.num_events)
    _require_people(work, work.warehouse.num_rows(SESSIONS))
    account.rows_in = {"new_events": added.num_rows}
    account.rows_out = {"sessions rebuilt": plan.num_sessions}
    account.remarks.append(f"{plan.num_parts} parts of the table rewritten, {after.num_sessions:,} sessions in them")
    _tell_collapsed(work, after)
    return None


def _tell_collapsed(work: _Work, found: _Sums) -> None:
    if work.config.collapse_repeats:
        work.account.rows_out["repeats collapsed"] = found.num_collapsed
        detail = f"repeats of the event before them, of {found.num_events:,} events in what was written"
        work.account.checks.append(Check("events_collapsed", SESSIONS.name, found.num_collapsed, detail=detail))


def _tell_set_aside(work: _Work) -> None:
    """All that is set aside, by reason."""
    by_reason = work.warehouse.read(SESSIONS_SET_ASIDE).groupBy("reason")
    counts = by_reason.agg(
        F.count("*").alias("sessions"), F.sum("num_events").alias("events"), F.count_distinct("user_id").alias("users")
    )
    for row in counts.orderBy("reason").collect():
        said = f"{row['sessions']:,} sessions of {row['users']:,} users with {row['events']:,} events"
        work.account.remarks.append(f"set aside, {row['reason'].replace('_', ' ')}: {said}")
        work.account.checks.append(Check("sessions_set_aside", row["reason"], row["sessions"], detail=said))


@dataclass(frozen=True)
class _Plan:
    """`sessions` take the place of the `outdated` ones (session_id); all of both lie in the `parts` (a predicate) of the table."""

    all_sessions: DataFrame
    outdated: DataFrame
    sessions: DataFrame
    parts: str
    num_parts: int
    num_sessions: int
    num_events_before: int
    num_events_after: int


@contextmanager
def _rebuilt(work: _Work, new_events: DataFrame) -> Iterator[_Plan]:
    """The sessions that new events touch, made again from their events; held in Spark's cache until the block ends."""
    if not work.by_key:
        new_events = new_events.withColumn("session_key", F.lit(None).cast("string"))
    all_sessions = work.stored()
    logged = all_sessions.withColumn("num_events", F.expr(_NUM_LOGGED))
    reached = touched(new_events, _within_reach(work, logged, new_events), work.config.gap_seconds)
    reached = reached.persist(StorageLevel.MEMORY_AND_DISK)
    days = spans(reached).persist(StorageLevel.MEMORY_AND_DISK)
    num_on = {row["event_date"]: row["count"] for row in days.groupBy("event_date").count().collect()}
    dates = sorted(num_on)
    on_days = F.col("event_date").between(dates[0], dates[-1])
    if len(dates) <= _MAX_DATES_NAMED:
        on_days &= F.col("event_date").isin(dates)
    their_events = events_within(work.events.where(on_days), _sent_whole(days, sum(num_on.values())), work.by_key)
    sessions = work.sessions(their_events).persist(StorageLevel.MEMORY_AND_DISK)
    outdated = reached.where(F.col("session_id").isNotNull())
    old = outdated.select(
        F.trunc("began_at", "month").alias("started_month"),
        user_bucket(work.config.num_buckets).alias("user_bucket"),
        F.lit(1).alias("is_old"),
        "num_events",
    )
    new = sessions.select(
        "started_month", "user_bucket", F.lit(0).alias("is_old"), F.expr(_NUM_LOGGED).alias("num_events")
    )
    sums = (
        old.unionByName(new)
        .groupBy("started_month", "user_bucket", "is_old")
        .agg(F.count("*").alias("num_sessions"), F.sum("num_events").alias("num_events"))
        .collect()
    )
    parts = {(row["started_month"], row["user_bucket"]) for row in sums}
    try:
        yield _Plan(
            all_sessions,
            _sent_whole(outdated.select("session_id"), sum(row["num_sessions"] for row in sums if row["is_old"])),
            sessions,
            _predicate(parts),
            len(parts),
            sum(row["num_sessions"] for row in sums if not row["is_old"]),
            sum(row["num_events"] for row in sums if row["is_old"]),
            sum(row["num_events"] for row in sums if not row["is_old"]),
        )
    finally:
        for frame in (reached, days, sessions):
            frame.unpersist()


def _sent_whole(rows: DataFrame, num_rows: int) -> DataFrame:
    """The rows, to be sent to every executor where they are few: what they are joined with, all events of some days, then stays in place."""
    return F.broadcast(rows) if num_rows <= _MAX_ROWS_SENT else rows


def _within_reach(work: _Work, sessions: DataFrame, new_events: DataFrame) -> DataFrame:
    """At least the sessions that end no more than a gap before the earliest new event, and whole months of them: one that these meet at an
    instant counts as one with them (see late_events), and that may be a chain. A session with a key of the log may be of any length."""
    if work.by_key:
        return sessions
    earliest = new_events.agg(F.min("event_time")).first()
    assert earliest is not None
    reach: datetime = earliest[0] - timedelta(seconds=work.config.gap_seconds)
    first_start = reach - timedelta(seconds=work.config.max_length_seconds)
    return sessions.where(F.col("started_month") >= F.lit(first_start.date().replace(day=1)))


def _predicate(parts: set[tuple[date, int]]) -> str:
    """SQL that holds for exactly these months of these buckets."""
    buckets_of: dict[date, list[int]] = {}
    for month, bucket in sorted(parts):
        buckets_of.setdefault(month, []).append(bucket)
    months_of: dict[tuple[int, ...], list[str]] = {}
    for month, buckets in buckets_of.items():
        months_of.setdefault(tuple(buckets), []).append(f"DATE'{month}'")
    return " OR ".join(
        f"(started_month IN ({', '.join(months)}) AND user_bucket IN ({', '.join(map(str, buckets))}))"
        for buckets, months in months_of.items()
    )


def _check_zone(warehouse: Warehouse, zone: str | None) -> None:
    if zone is None:
        return
    try:
        warehouse.spark.range(1).select(F.from_utc_timestamp(F.current_timestamp(), zone)).collect()
    except Exception as error:
        raise UsageError(
            f"sessionize.day_cut is '{zone}', which is no time zone: give one such as Europe/London or UTC, or leave it out"
        ) from error
