"""sessionize: events -> sessions."""

from __future__ import annotations

from dataclasses import asdict

from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.schemas import EVENTS, SESSIONS
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.sessions import sessionize as sessionize_events


def sessionize(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Rebuild the sessions from all events, unless they were built from this version of the events with these settings."""
    by_key = config.ingest.columns.session is not None
    events_version = warehouse.version(EVENTS)
    origin = {
        "events": warehouse.data_version(EVENTS, events_version),
        "by_key": by_key,
        **asdict(config.sessionize),
    }
    if warehouse.origin(SESSIONS) == origin:
        account.nothing_to_do = f"sessions are those of events v{origin['events']} already"
        return
    events = warehouse.read(EVENTS, events_version)
    with progress("sessionize"):
        num_events = events.count()
        if num_events == 0:
            raise DataError("the events table is empty: run `llm-spark ingest` on logs that hold events")
        warehouse.replace(SESSIONS, sessionize_events(events, config.sessionize, by_key), origin)
        counted = warehouse.read(SESSIONS).agg(
            F.count("*").alias("sessions"),
            F.sum("num_events").alias("events"),
            F.count_distinct("user_id").alias("users"),
        )
        sums = counted.first()
    assert sums is not None
    if sums["events"] != num_events:
        warehouse.undo(SESSIONS)
        raise UserError(f"{num_events} events went into sessionize and {sums['events']} came out: run it again")
    account.rows_in = {"events": num_events}
    account.rows_out = {"sessions": sums["sessions"], "users": sums["users"]}
    account.read = {EVENTS.name: events_version}
    account.wrote(warehouse, SESSIONS)
