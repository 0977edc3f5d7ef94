"""sessionize: events -> sessions, sessions_set_aside."""

from __future__ import annotations

from dataclasses import asdict

from pyspark import StorageLevel
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account, Check
from llm_spark.schemas import EVENTS, SESSIONS, SESSIONS_SET_ASIDE
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.quality import collapse_repeats, judge_sessions, kept_sessions, sessions_set_aside
from llm_spark.transforms.sessions import sessionize as sessionize_events


def sessionize(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Rebuild the sessions from all events, unless they were built from this version of the events with these settings."""
    settings, by_key = config.sessionize, config.ingest.columns.session is not None
    origin = {"events": warehouse.version(EVENTS), "by_key": by_key, **asdict(settings)}
    sets_aside = settings.bots.any_limit or warehouse.exists(SESSIONS_SET_ASIDE)
    tables = [SESSIONS_SET_ASIDE, SESSIONS] if sets_aside else [SESSIONS]
    if all(warehouse.origin(table) == origin for table in tables):
        account.nothing_to_do = f"sessions are those of events v{origin['events']} already"
        return
    events = warehouse.read(EVENTS, origin["events"])
    with progress("sessionize"):
        num_events = events.count()
        if num_events == 0:
            raise DataError("the events table is empty: run `llm-spark ingest` on logs that hold events")
        judged = judge_sessions(sessionize_events(events, settings, by_key), settings.bots)
        if sets_aside:
            judged = judged.persist(StorageLevel.MEMORY_AND_DISK)
            warehouse.replace(SESSIONS_SET_ASIDE, sessions_set_aside(judged), origin)
        kept = kept_sessions(judged)
        warehouse.replace(SESSIONS, collapse_repeats(kept) if settings.collapse_repeats else kept, origin)
        judged.unpersist()
        counted = warehouse.read(SESSIONS).agg(
            F.count("*").alias("sessions"),
            F.coalesce(F.sum("num_events"), F.lit(0)).alias("events"),
            F.coalesce(F.sum("num_collapsed"), F.lit(0)).alias("collapsed"),
            F.count_distinct("user_id").alias("users"),
        )
        sums = counted.first()
        aside = _count_set_aside(warehouse, account) if sets_aside else 0
    assert sums is not None
    if sums["events"] + sums["collapsed"] + aside != num_events:
        for table in tables:
            warehouse.undo(table)
        raise UserError(
            f"{num_events} events went into sessionize and {sums['events']} (with {sums['collapsed']} collapsed and {aside} set aside) "
            "came out: run it again"
        )
    if sums["sessions"] == 0:
        for table in tables:
            warehouse.undo(table)
        raise DataError(f"all {num_events:,} events are in sessions of bots: raise the limits of sessionize.bots")
    account.rows_in = {"events": num_events}
    account.rows_out = {"sessions": sums["sessions"], "users": sums["users"]}
    if settings.collapse_repeats:
        account.rows_out["repeats collapsed"] = sums["collapsed"]
        detail = f"repeats of the event before them, of {num_events:,} events"
        account.checks.append(Check("events_collapsed", SESSIONS.name, sums["collapsed"], detail=detail))
    account.read = {EVENTS.name: origin["events"]}
    account.wrote(warehouse, *tables)


def _count_set_aside(warehouse: Warehouse, account: Account) -> int:
    """Events in sessions_set_aside, which the account and data_quality tell by reason."""
    by_reason = warehouse.read(SESSIONS_SET_ASIDE).groupBy("reason")
    counts = by_reason.agg(
        F.count("*").alias("sessions"),
        F.sum("num_events").alias("events"),
        F.count_distinct("user_id").alias("users"),
    )
    rows = counts.orderBy("reason").collect()
    for row in rows:
        said = f"{row['sessions']:,} sessions of {row['users']:,} users with {row['events']:,} events"
        account.remarks.append(f"set aside, {row['reason'].replace('_', ' ')}: {said}")
        account.checks.append(Check("sessions_set_aside", row["reason"], row["sessions"], detail=said))
    return sum(row["events"] for row in rows)
