"""What is foretold of users, and what is kept of them from night to night."""

from __future__ import annotations

from pyspark.sql import types as t

from llm_spark.schemas.table import INTS, LONG, MODEL_ID, RUN_ID, TEXT, TEXTS, TIME, USER_ID, Table, columns

_REASONS = t.ArrayType(
    columns(
        ("item_id", TEXT, "an item of the user's past, as in events"),
        ("weight", t.DoubleType(), "what the user's events with it added to the score, or to the logit of an outcome"),
    )
)
_SESSIONS_VERSION = ("sessions_version", LONG, "data version of the table sessions that the histories were made from")
_SCORED_AT = ("scored_at", TIME, "when the run that wrote it began")

PREDICTIONS = Table(
    "predictions",
    "One recommended next item of one user, or why there is none",
    "score",
    columns(
        ("as_of_date", t.DateType(), "events up to the end of this UTC day were used"),
        ("user_id", TEXT, "who, as in the raw log; null in the list for whoever comes for the first time"),
        ("rank", t.IntegerType(), "1 is the likeliest"),
        ("item_id", TEXT, "the item, as in events; null where source is abstained or withdrawn"),
        (
            "source",
            TEXT,
            "model: the model recommends it. fallback: the model knows nothing of the user, and it is one of the items with the most events in the "
            "score.fallback_days before. abstained: nothing passes the filters of score. withdrawn: the user has no session any more. The last "
            "two have one row a user, which predictions_current leaves out; null was written by an earlier version, and means model",
        ),
        ("score", t.DoubleType(), "logit; null unless the model recommends it"),
        (
            "probability",
            t.DoubleType(),
            "softmax over the whole vocabulary, whatever is offered, at the temperature that makes it hold on validation; of a fallback the item's "
            "share of all events in these days",
        ),
        (
            "reasons",
            _REASONS,
            "the past items that raised the score most, strongest first; null where none were asked for (score.reasons, score.explained)",
        ),
        (
            "memory_weight",
            t.DoubleType(),
            "what all sessions before the current one added to the score, through the long-term memory; null as reasons",
        ),
        MODEL_ID,
        _SESSIONS_VERSION,
        _SCORED_AT,
        RUN_ID,
    ),
    ("as_of_date",),
    added_later=("reasons", "memory_weight", "sessions_version", "source"),
)

OUTCOMES = Table(
    "outcomes",
    "What is foretold of one user: whether an outcome of model.outcomes will come about, or how much",
    "score",
    columns(
        (
            "as_of_date",
            t.DateType(),
            "events up to the end of this UTC day were used, and the outcome's days begin there",
        ),
        USER_ID,
        ("outcome", TEXT, "the name of the outcome"),
        ("probability", t.DoubleType(), "that it comes about within its days; null where the outcome is an amount"),
        (
            "value",
            t.DoubleType(),
            "the amount foretold for its days, in the unit of events.value, times the factor that makes it hold on average on validation; null where "
            "it is a probability",
        ),
        (
            "decile",
            t.IntegerType(),
            "1: the tenth of the users of whom the most is foretold, to 10; of equal ones those come first whose user_id is smaller",
        ),
        (
            "reasons",
            _REASONS,
            "the past items that raised the outcome's logit, or log(1 + amount), most, strongest first, the user's numbers of visits, time and "
            "spending held as they are; null where none were asked for (score.reasons)",
        ),
        MODEL_ID,
        _SESSIONS_VERSION,
        _SCORED_AT,
        RUN_ID,
    ),
    ("as_of_date",),
)

USER_MEMORY = Table(
    "user_memory",
    "What one model keeps of one user from night to night: the memory of past sessions, and the steps after them (the window)",
    "score",
    columns(
        USER_ID,
        ("user_bucket", t.IntegerType(), "hash of the user modulo the number of buckets, as in sessions"),
        MODEL_ID,
        ("memory", t.BinaryType(), "float32, little-endian: the user's vector before the first session of the window"),
        (
            "past",
            columns(
                ("num_sessions", LONG, "sessions in the memory"),
                ("num_events", LONG, "events in the memory"),
                ("first_event_time", LONG, "epoch seconds: the user's first event"),
                ("previous_event_time", LONG, "epoch seconds: the last event of the last session in the memory"),
                ("latest_event_time", LONG, "epoch seconds: the latest event in the memory"),
                ("value_sum", t.DoubleType(), "sum of the values of the events in the memory, as the model reads them"),
                (
                    "last_value",
                    t.FloatType(),
                    "value of the last event in the memory, as the model reads it; null where it had none",
                ),
                ("ended_at", TIME, "ended_at of the last session in the memory"),
                ("session_id", TEXT, "that session"),
            ),
            "what else is known of the sessions in the memory; null where there are none, and the memory is a newcomer's",
        ),
        (
            "earlier_tokens",
            INTS,
            "items before the window that are among the newest sequences.max_tokens, oldest first",
        ),
        ("earlier_event_types", INTS, "event types, token by token"),
        (
            "tokens",
            INTS,
            "the window's items, oldest first: the last session, and where reasons are given as many whole ones before it as fit",
        ),
        ("event_types", INTS, "event types, token by token"),
        ("values", t.ArrayType(t.FloatType()), "values as the model reads them, null where there is none"),
        (
            "features",
            t.ArrayType(t.FloatType()),
            "model.features of the first token, then of the second, ...; null without any",
        ),
        ("event_times", t.ArrayType(LONG), "epoch seconds, token by token"),
        ("session_starts", INTS, "offsets in tokens at which a session begins; the first is 0"),
        ("session_ids", TEXTS, "the window's sessions"),
        ("sessions_ended_at", t.ArrayType(TIME), "when they ended, as in sessions"),
        ("position", LONG, "the user's events, in the memory and in the window"),
        ("last_event_time", TIME, "time of the last event"),
        ("last_session_id", TEXT, "the last session"),
        ("session_open", t.BooleanType(), "whether, that night, the next event would still have belonged to it"),
        (
            "as_of_date",
            t.DateType(),
            "the night that last had news of the user, and the partition of the predictions it gave him",
        ),
        RUN_ID,
    ),
    ("user_bucket",),
    is_derived=True,
)
