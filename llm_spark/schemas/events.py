"""Events as they were logged, and the sessions made of them."""

from __future__ import annotations

from pyspark.sql import types as t

from llm_spark.schemas.table import LONG, RUN_ID, TEXT, TEXTS, TIME, USER_ID, Table, columns

REJECTION_REASONS = (
    "unparsable",
    "too_long",
    "repeated_header",
    "missing_user",
    "missing_item",
    "missing_time",
    "missing_type",
    "missing_value",
    "missing_attribute",
    "bad_time",
    "time_out_of_range",
    "future_time",
    "filtered",
    "unreadable_file",
)

SET_ASIDE_REASONS = ("too_fast", "too_many_events", "too_many_events_a_day")

EVENTS = Table(
    "events",
    "One accepted event",
    "ingest",
    columns(
        ("event_id", TEXT, "hash of the event's identity: user, item, type, time, value, session key and attributes"),
        USER_ID,
        ("item_id", TEXT, "what it was done to, as in the raw log after the configured expression"),
        ("event_type", TEXT, "kind of event"),
        ("event_time", TIME, "when it happened"),
        ("value", t.DoubleType(), "a number that belongs to the event; null where there is none"),
        ("session_key", TEXT, "session id given by the log; null where there is none"),
        ("attributes", t.MapType(TEXT, TEXT), "further fields"),
        ("event_date", t.DateType(), "UTC day of event_time"),
        ("source_file", TEXT, "the raw file this event was first read from"),
        ("ingested_at", TIME, "when the run that read it began"),
        RUN_ID,
    ),
    ("event_date",),
    seldom_repeated=("event_id",),
)

EVENTS_REJECTED = Table(
    "events_rejected",
    "One record that was not accepted",
    "ingest",
    columns(
        ("record_id", TEXT, "hash of the file, the raw record and its occurrence in that file"),
        ("source_file", TEXT, "the raw file"),
        (
            "raw",
            TEXT,
            "the record as it stood in the file, its fields as JSON where the file's format had parsed it, its beginning where it is "
            "too long; under ingest.pseudonymise its length and keyed hash",
        ),
        ("reason", TEXT, "one of " + ", ".join(REJECTION_REASONS)),
        ("detail", TEXT, "the offending value, or the filter that was not met"),
        ("ingested_at", TIME, "when the run that read it began"),
        RUN_ID,
    ),
)

INGESTED_FILES = Table(
    "ingested_files",
    "One raw file that was read: the ledger that keeps it from being read again",
    "ingest",
    columns(
        ("source_file", TEXT, "the raw file"),
        ("num_bytes", LONG, "its size when read"),
        ("modified_at", TIME, "its modification time when read"),
        ("num_records", LONG, "records in it"),
        ("num_accepted", LONG, "records that became rows of events"),
        ("num_rejected", LONG, "records that went to events_rejected"),
        ("num_duplicates", LONG, "records whose event was there already"),
        ("ingested_at", TIME, "when the run that read it began"),
        RUN_ID,
        (
            "settings",
            TEXT,
            "hash of the settings that made events of its records; null where an earlier version of this program read it",
        ),
    ),
    added_later=("settings",),
)

SESSIONS = Table(
    "sessions",
    "One session",
    "sessionize",
    columns(
        ("session_id", TEXT, "hash of the user and of the session key or the session's first event"),
        USER_ID,
        ("session_key", TEXT, "session id given by the log; null where there is none"),
        ("user_bucket", t.IntegerType(), "hash of the user modulo the number of buckets"),
        ("started_month", t.DateType(), "first day of the UTC month of started_at"),
        ("started_at", TIME, "time of its first event"),
        ("ended_at", TIME, "time of its last event, collapsed or not"),
        ("num_events", t.IntegerType(), "events in it"),
        ("num_collapsed", t.IntegerType(), "further events that repeated the one before them and were collapsed"),
        ("item_ids", TEXTS, "items in time order; ties by event_id"),
        ("event_types", TEXTS, "their event types"),
        ("event_times", t.ArrayType(TIME), "their times"),
        ("event_values", t.ArrayType(t.DoubleType()), "their values; null where there is none"),
        (
            "event_features",
            t.ArrayType(t.ArrayType(t.DoubleType())),
            "their model.features, in that order; null without any",
        ),
    ),
    # A night touches the newest month alone, and late events of few users few buckets.
    ("started_month", "user_bucket"),
    seldom_repeated=("session_id", "started_at", "ended_at", "event_times"),
    is_derived=True,
)

SESSIONS_SET_ASIDE = Table(
    "sessions_set_aside",
    "One session of what is no human, kept out of sessions",
    "sessionize",
    t.StructType(
        SESSIONS.schema.fields
        + columns(
            ("reason", TEXT, "one of " + ", ".join(SET_ASIDE_REASONS)),
            ("detail", TEXT, "the measured value and the limit"),
        ).fields
    ),
    SESSIONS.partition_by,
    seldom_repeated=SESSIONS.seldom_repeated,
    is_derived=True,
)
