"""Small logs full of ties, gaps and late arrivals, DuckDB's own way from events to sessions, and what in a log puts a rule to the test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from llm_spark.config import Config, SessionizeConfig
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.sessionize import sessionize
from llm_spark.schemas import EVENTS
from llm_spark.tables.warehouse import Warehouse

OLD_MONTH_ENDS = datetime(2025, 2, 1)
"""No event from before is late."""
STAGES = {
    "an old month": datetime(2025, 1, 15, 12),
    "midnight at +05:30": datetime(2025, 2, 10, 18, 30),
    "a month's turn at London's midnight": datetime(2025, 3, 1),
    "midnight at -07:00": datetime(2025, 3, 12, 7),
    "London's midnight before its clocks go forward": datetime(2025, 3, 30),
    "London's midnight after": datetime(2025, 3, 30, 23),
    "a month's turn an hour past London's midnight": datetime(2025, 4, 1),
}
"""UTC times about which sessions are cut by something else than a pause, or lie in another month than they did."""


@dataclass(frozen=True)
class LoggedEvent:
    """`night`: when it arrives. Its item is its id unless one is given, so that a session's items tell its events."""

    event_id: str
    user_id: str
    at: datetime
    session_key: str | None = None
    night: int = 0
    event_type: str = "view"
    value: float | None = 1.0
    given_item: str | None = None

    @property
    def item(self) -> str:
        return self.given_item or self.event_id


def random_log(seed: int, num_users: int, num_nights: int, late_share: float = 0.15) -> list[LoggedEvent]:
    """Each user's events on a grid of 10 s within a quarter of an hour around midnight of a 28th; some arrive late, as `_arriving` has it."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        start = datetime(2025, 1 + user % 4, 28) - timedelta(seconds=int(random.integers(0, 400)))
        ticks = np.sort(random.integers(0, 90, int(random.integers(1, 40))))
        times = [start + timedelta(seconds=10 * int(tick)) for tick in ticks]
        events += _arriving(random, user, times, num_nights, late_share)
    return events


def log_of_stages(seed: int, num_users: int, num_nights: int, late_share: float = 0.15) -> list[LoggedEvent]:
    """Each user's events on a grid of 10 s around some of the `STAGES`; some of them arrive late, by seconds or by months, but none of the old
    month."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        visited = [stage for stage in STAGES.values() if random.random() < 0.6]
        ticks = [(stage, random.integers(-8, 9, int(random.integers(1, 14)))) for stage in visited]
        times = sorted(stage + timedelta(seconds=10 * int(tick)) for stage, around in ticks for tick in around)
        arriving = _arriving(random, user, times, num_nights, late_share, none_late_before=OLD_MONTH_ENDS)
        events += [_with_content(random, event) for event in arriving]
    return events


def _arriving(
    random: np.random.Generator,
    user: int,
    times: Sequence[datetime],
    num_nights: int,
    late_share: float,
    none_late_before: datetime = datetime.min,
) -> list[LoggedEvent]:
    """A user's events at these times, most of which arrive the first night, the rest late or, for every third user, in time order."""
    events = []
    num, in_order = len(times), user % 3 == 0
    for place, at in enumerate(times):
        late = place / num > 1 - late_share if in_order else random.random() < late_share
        night = 0
        if late and at >= none_late_before:
            night = 1 + (
                place % num_nights
                if not in_order
                else min(num_nights - 1, int((place / num - 1 + late_share) / late_share * num_nights))
            )
        key = [None, "a", "b"][int(random.integers(0, 3))]
        # Ids in an order of their own, so that ties are decided by them and not by arrival.
        event_id = f"{random.integers(0, 2**60):015x}-{user}-{place}"
        events.append(LoggedEvent(event_id, f"user {user}", at, key, night))
    return events


def _with_content(random: np.random.Generator, event: LoggedEvent) -> LoggedEvent:
    """The event with one of few items and types, a value or none, and more often without a key."""
    return replace(
        event,
        session_key=event.session_key if random.random() < 0.75 else None,
        event_type=["view", "like", "purchase"][int(random.integers(0, 3))],
        value=None if random.random() < 0.3 else float(random.integers(0, 1_000)) / 4,
        given_item=f"item {random.integers(0, 50)}",
    )


def events_frame(spark: SparkSession, events: Sequence[LoggedEvent]) -> DataFrame:
    rows = [
        (e.event_id, e.user_id, e.item, e.event_type, e.at, e.value, e.session_key, None, e.at.date(), "f", e.at, "r")
        for e in events
    ]
    return spark.createDataFrame(rows, EVENTS.schema)


def arrive(warehouse: Warehouse, events: Sequence[LoggedEvent]) -> None:
    """Add the events as a night of ingest does: rows are appended, nothing is rewritten."""
    warehouse.append(EVENTS, events_frame(warehouse.spark, events), f"night of {events[0].event_id}")


def settings(by_key: bool = False, **changes: object) -> Config:
    """Of a short gap and few buckets, with `changes` in sessionize; by the log's own session keys or not."""
    config = Config(sessionize=replace(SessionizeConfig(gap_seconds=30, num_buckets=2), **changes))  # type: ignore[arg-type]
    columns = replace(config.ingest.columns, session="key" if by_key else None)
    return replace(config, ingest=replace(config.ingest, columns=columns))


def sessionized(warehouse: Warehouse, config: Config) -> Account:
    """Run the stage, but for the record of the run."""
    account = Account("sessionize")
    sessionize(warehouse, config, account)
    return account


def was_rebuilt_wholly(account: Account) -> bool:
    return "new_events" not in account.rows_in


_USER, _BEGAN_AT, _EVENT_IDS = 1, 3, -1
"""Places in a row of this query."""
_REFERENCE = """
WITH RECURSIVE
ordered AS (
    SELECT *, row_number() OVER (PARTITION BY user_id, session_key ORDER BY event_time, event_id) AS n FROM log
),
walk AS (
    SELECT *, 1 AS session, event_time AS began_at, 1 AS num FROM ordered WHERE n = 1
    UNION ALL
    SELECT o.*,
        w.session + CASE WHEN stays THEN 0 ELSE 1 END,
        CASE WHEN stays THEN w.began_at ELSE o.event_time END,
        CASE WHEN stays THEN w.num + 1 ELSE 1 END
    FROM walk AS w
    JOIN ordered AS o ON o.user_id = w.user_id AND o.session_key IS NOT DISTINCT FROM w.session_key AND o.n = w.n + 1,
    LATERAL (SELECT w.num < {max_events} AND (o.session_key IS NOT NULL OR (
        o.event_time - w.event_time <= INTERVAL {gap} SECOND
        AND o.event_time - w.began_at <= INTERVAL {length} SECOND
        AND o.local_day IS NOT DISTINCT FROM w.local_day
    )) AS stays)
)
SELECT substr(sha256(concat(user_id, chr(31), coalesce(session_key, ''), chr(31), first(event_id ORDER BY n))), 1, 32) AS session_id,
    user_id, session_key, min(event_time) AS started_at, max(event_time) AS ended_at, count(*) AS num_events, list(item_id ORDER BY n),
    list(event_type ORDER BY n), list(event_time ORDER BY n), list(value ORDER BY n), list(event_id ORDER BY n)
FROM walk GROUP BY user_id, session_key, session
"""


def reference_sessions(events: Sequence[LoggedEvent], config: Config) -> set[tuple]:
    """The sessions as DuckDB walks to them event by event; the days of `day_cut` are Python's."""
    return {session[:_EVENT_IDS] for session in _with_event_ids(events, config)}


def _with_event_ids(events: Sequence[LoggedEvent], config: Config) -> set[tuple]:
    rules, by_key = config.sessionize, config.ingest.columns.session is not None
    zone = None if rules.day_cut is None else _zone(rules.day_cut)
    log = pa.table(
        {
            "event_id": [e.event_id for e in events],
            "user_id": [e.user_id for e in events],
            "session_key": pa.array([e.session_key if by_key else None for e in events], pa.string()),
            "event_time": pa.array([e.at for e in events], pa.timestamp("us")),
            "item_id": [e.item for e in events],
            "event_type": [e.event_type for e in events],
            "value": pa.array([e.value for e in events], pa.float64()),
            "local_day": pa.array([None if zone is None else _local_day(e.at, zone) for e in events], pa.date32()),
        }
    )
    query = _REFERENCE.format(max_events=rules.max_events, gap=rules.gap_seconds, length=rules.max_length_seconds)
    with duckdb.connect() as connection:
        connection.register("log", log)
        rows = connection.execute(query).fetchall()
    return {_hashable(row) for row in rows}


def found_sessions(sessions: DataFrame) -> set[tuple]:
    """The rows of the table in the columns of the reference."""
    columns = ["session_id", "user_id", "session_key", "started_at", "ended_at", "num_events"]
    arrays = ["item_ids", "event_types", "event_times", "event_values"]
    rows = sessions.select(*columns, *arrays, "started_month").collect()
    assert len(rows) == len({row["session_id"] for row in rows})
    assert all(row["started_month"] == row["started_at"].date().replace(day=1) for row in rows)
    return {_hashable(row[:-1]) for row in rows}


def users_told_by(log: Sequence[LoggedEvent], config: Config, **without: object) -> set[str]:
    """Users with a late event in a session that would be another `without` (settings of sessionize) the rule that these undo."""
    others = replace(config, sessionize=replace(config.sessionize, **without))  # type: ignore[arg-type]
    late = {event.event_id for event in log if event.night}
    changed = _with_event_ids(log, config) - _with_event_ids(log, others)
    return {session[_USER] for session in changed if not late.isdisjoint(session[_EVENT_IDS])}


def num_begun_a_month_earlier(log: Sequence[LoggedEvent], config: Config) -> int:
    """Sessions of any night with an event whose session began in a later month the night before."""
    num_earlier, month_before = 0, dict[str, date]()
    for night in range(1 + max(event.night for event in log)):
        sessions = _with_event_ids([event for event in log if event.night <= night], config)
        months = {session: session[_BEGAN_AT].date().replace(day=1) for session in sessions}
        num_earlier += sum(
            any(month_before.get(event_id, month) > month for event_id in session[_EVENT_IDS])
            for session, month in months.items()
        )
        month_before = {event_id: month for session, month in months.items() for event_id in session[_EVENT_IDS]}
    return num_earlier


def users_late_by(log: Sequence[LoggedEvent], at_least: timedelta) -> set[str]:
    """Users with an event that is older, by so much, than another that arrived on a night before."""
    log_of = defaultdict[str, list[LoggedEvent]](list)
    for event in log:
        log_of[event.user_id].append(event)
    return {
        user
        for user, events in log_of.items()
        if any(late.at + at_least <= e.at for late in events for e in events if e.night < late.night)
    }


def _hashable(row: Sequence[object]) -> tuple:
    return tuple(tuple(part) if isinstance(part, list) else part for part in row)


def _zone(name: str) -> tzinfo:
    if name[0] not in "+-":
        return ZoneInfo(name)
    fixed = datetime.strptime(name, "%z").tzinfo
    assert fixed is not None
    return fixed


def _local_day(at: datetime, zone: tzinfo) -> date:
    return at.replace(tzinfo=UTC).astimezone(zone).date()
