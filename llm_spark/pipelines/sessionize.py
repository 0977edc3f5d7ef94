"""sessionize: events -> sessions.

Events that were added since the sessions were made change only the sessions that they fall into or join up; these are rebuilt, and put in
place by one commit that replaces the parts of the table (a month of a bucket of users) that hold them. Where what was added cannot be told
(events were removed, the log is gone, settings changed), all sessions are rebuilt. Both ways give the same table.
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
from llm_spark.schemas import EVENTS, SESSIONS
from llm_spark.tables.changes import additions, read_additions
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.late_events import events_within, spans, touched
from llm_spark.transforms.sessions import RULES_VERSION, user_bucket
from llm_spark.transforms.sessions import sessionize as sessionize_events

# Above this share of new events a rebuild of everything is the cheaper way.
_REBUILD_SHARE = 0.2
_MAX_DATES_NAMED = 4_000
_MAX_ROWS_SENT = 1_000_000
_NEW_EVENT_COLUMNS = ["user_id", "session_key", "event_time"]


def sessionize(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Bring the sessions up to date with the events; nothing to do if they were made from this version of them with these settings."""
    work = _Work(warehouse, config.sessionize, config.ingest.columns.session is not None, account)
    made = warehouse.origin(SESSIONS)
    if made is not None and (made.get("events"), made.get("settings")) == (work.events_version, work.settings):
        account.nothing_to_do = f"sessions are those of events v{work.events_version} already"
        return
    _check_zone(warehouse, config.sessionize.day_cut)
    with progress("sessionize"):
        reason = _update(work, made) if made is not None else "there are none yet"
        if account.nothing_to_do:
            return
        if reason:
            _rebuild(work)
            if made is not None:
                account.remarks.append(f"all sessions were rebuilt: {reason}")
    account.read = {EVENTS.name: work.events_version}
    account.wrote(warehouse, SESSIONS)


class _Work:
    """What one run works on: the events of one version, and under which settings."""

    def __init__(self, warehouse: Warehouse, config: SessionizeConfig, by_key: bool, account: Account) -> None:
        self.warehouse, self.config, self.by_key, self.account = warehouse, config, by_key, account
        self.events_version = warehouse.version(EVENTS)
        self.settings = {"rules": RULES_VERSION, "by_key": by_key, **asdict(config)}
        self.events = warehouse.read(EVENTS, self.events_version)

    @cached_property
    def num_events(self) -> int:
        return self.events.count()  # from the statistics in the log, without reading a row

    def origin(self) -> dict[str, Any]:
        return {"events": self.events_version, "num_events": self.num_events, "settings": self.settings}


@dataclass(frozen=True)
class _Sums:
    """Sessions and events in them."""

    num_sessions: int
    num_events: int

    @classmethod
    def of(cls, sessions: DataFrame) -> _Sums:
        row = sessions.agg(
            F.count("*").alias("rows"), F.coalesce(F.sum("num_events"), F.lit(0)).alias("events")
        ).first()
        assert row is not None
        return cls(row["rows"], row["events"])


def _rebuild(work: _Work) -> None:
    if work.num_events == 0:
        raise DataError("the events table is empty: run `llm-spark ingest` on logs that hold events")
    work.warehouse.replace(SESSIONS, sessionize_events(work.events, work.config, work.by_key), work.origin())
    found = _Sums.of(work.warehouse.read(SESSIONS))
    _check_events(work, work.num_events, found.num_events)
    work.account.rows_in = {"events": work.num_events}
    work.account.rows_out = {"sessions": found.num_sessions}


def _check_events(work: _Work, num_in: int, num_out: int) -> None:
    if num_in != num_out:
        work.warehouse.undo(SESSIONS)
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
        warehouse.replace_where(SESSIONS, kept.unionByName(plan.sessions), plan.parts, work.origin())
    after = _Sums.of(warehouse.read(SESSIONS).where(plan.parts))
    _check_events(work, before.num_events + added.num_rows, after.num_events)
    account.rows_in = {"new_events": added.num_rows}
    account.rows_out = {"sessions rebuilt": plan.num_sessions}
    account.remarks.append(f"{plan.num_parts} parts of the table rewritten, {after.num_sessions:,} sessions in them")
    return None


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
    all_sessions = work.warehouse.read(SESSIONS, work.warehouse.version(SESSIONS))
    reached = touched(new_events, _within_reach(work, all_sessions, new_events), work.config.gap_seconds)
    reached = reached.persist(StorageLevel.MEMORY_AND_DISK)
    days = spans(reached).persist(StorageLevel.MEMORY_AND_DISK)
    num_on = {row["event_date"]: row["count"] for row in days.groupBy("event_date").count().collect()}
    dates = sorted(num_on)
    on_days = F.col("event_date").between(dates[0], dates[-1])
    if len(dates) <= _MAX_DATES_NAMED:
        on_days &= F.col("event_date").isin(dates)
    their_events = events_within(work.events.where(on_days), _sent_whole(days, sum(num_on.values())), work.by_key)
    sessions = sessionize_events(their_events, work.config, work.by_key).persist(StorageLevel.MEMORY_AND_DISK)
    outdated = reached.where(F.col("session_id").isNotNull())
    old = outdated.select(
        F.trunc("began_at", "month").alias("started_month"),
        user_bucket(work.config.num_buckets).alias("user_bucket"),
        F.lit(1).alias("is_old"),
        "num_events",
    )
    new = sessions.select("started_month", "user_bucket", F.lit(0).alias("is_old"), "num_events")
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
    """The sessions that end no more than a gap before the earliest new event. A session with a key of the log may be of any length."""
    if work.by_key:
        return sessions
    earliest = new_events.agg(F.min("event_time")).first()
    assert earliest is not None
    reach: datetime = earliest[0] - timedelta(seconds=work.config.gap_seconds)
    first_start = reach - timedelta(seconds=work.config.max_length_seconds)
    return sessions.where(
        (F.col("started_month") >= F.lit(first_start.date().replace(day=1))) & (F.col("ended_at") >= F.lit(reach))
    )


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
