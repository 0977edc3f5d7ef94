"""Every table: its columns, types and comments. Times are UTC.

Names of columns are written out here once; transforms and pipelines refer to them by these names.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import types as t

TEXT = t.StringType()
TEXTS = t.ArrayType(t.StringType())
INTS = t.ArrayType(t.IntegerType())
TIME = t.TimestampType()
LONG = t.LongType()

SPLITS = ("train", "validation", "test")

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


@dataclass(frozen=True)
class Table:
    """One Delta table: what a row is, its columns, how it is partitioned, and which stage writes it."""

    name: str
    comment: str
    written_by: str
    schema: t.StructType
    partition_by: tuple[str, ...] = ()
    rows_per_group: int = 0
    """Rows of a Parquet row group, 0 for what fits into 128 MiB."""
    is_pinned: bool = False
    """Whether models pin versions of it, which then have to stay readable."""
    added_later: tuple[str, ...] = ()
    """Columns that tables of earlier versions of this program lack: null in their rows. A table that lacks any other is not read."""
    is_derived: bool = False
    """Whether its stage can write all of it anew from other tables."""

    @property
    def remedy(self) -> str:
        """What to do about a table that cannot be read, as the end of a sentence."""
        if self.is_derived:
            return (
                f"run `llm-spark {self.written_by}`, which writes it anew, or restore an earlier version of the table"
            )
        return "restore an earlier version of the table, or rename the columns"


def _columns(*columns: tuple[str, t.DataType, str]) -> t.StructType:
    return t.StructType([t.StructField(name, kind, True, {"comment": comment}) for name, kind, comment in columns])


_RUN_ID = ("run_id", TEXT, "the run that wrote this row")
_MODEL_ID = ("model_id", TEXT, "the model, a row of models")
_USER_ID = ("user_id", TEXT, "who, as in the raw log")

EVENTS = Table(
    "events",
    "One accepted event",
    "ingest",
    _columns(
        ("event_id", TEXT, "hash of the event's identity: user, item, type, time, value, session key and attributes"),
        _USER_ID,
        ("item_id", TEXT, "what it was done to, as in the raw log after the configured expression"),
        ("event_type", TEXT, "kind of event"),
        ("event_time", TIME, "when it happened"),
        ("value", t.DoubleType(), "a number that belongs to the event; null where there is none"),
        ("session_key", TEXT, "session id given by the log; null where there is none"),
        ("attributes", t.MapType(TEXT, TEXT), "further fields"),
        ("event_date", t.DateType(), "UTC day of event_time"),
        ("source_file", TEXT, "the raw file this event was first read from"),
        ("ingested_at", TIME, "when the run that read it began"),
        _RUN_ID,
    ),
    ("event_date",),
)

EVENTS_REJECTED = Table(
    "events_rejected",
    "One record that was not accepted",
    "ingest",
    _columns(
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
        _RUN_ID,
    ),
)

INGESTED_FILES = Table(
    "ingested_files",
    "One raw file that was read: the ledger that keeps it from being read again",
    "ingest",
    _columns(
        ("source_file", TEXT, "the raw file"),
        ("num_bytes", LONG, "its size when read"),
        ("modified_at", TIME, "its modification time when read"),
        ("num_records", LONG, "records in it"),
        ("num_accepted", LONG, "records that became rows of events"),
        ("num_rejected", LONG, "records that went to events_rejected"),
        ("num_duplicates", LONG, "records whose event was there already"),
        ("ingested_at", TIME, "when the run that read it began"),
        _RUN_ID,
    ),
)

SESSIONS = Table(
    "sessions",
    "One session",
    "sessionize",
    _columns(
        ("session_id", TEXT, "hash of the user and of the session key or the session's first event"),
        _USER_ID,
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
    is_derived=True,
)

SESSIONS_SET_ASIDE = Table(
    "sessions_set_aside",
    "One session of what is no human, kept out of sessions",
    "sessionize",
    t.StructType(
        SESSIONS.schema.fields
        + _columns(
            ("reason", TEXT, "one of " + ", ".join(SET_ASIDE_REASONS)),
            ("detail", TEXT, "the measured value and the limit"),
        ).fields
    ),
    SESSIONS.partition_by,
    is_derived=True,
)

VOCABULARY = Table(
    "vocabulary",
    "One item the model knows; append-only, tokens are never reused. 0 is padding, 1 unknown",
    "sequences",
    _columns(
        ("token", t.IntegerType(), "the item's number, from 2"),
        ("item_id", TEXT, "the item"),
        ("num_events", LONG, "its events in the training window when it was added"),
        ("first_seen_at", TIME, "its first event in that window"),
    ),
    is_pinned=True,
)

EVENT_TYPES = Table(
    "event_types",
    "One event type the model knows; append-only, as vocabulary",
    "sequences",
    _columns(
        ("token", t.IntegerType(), "the event type's number, from 2"),
        ("event_type", TEXT, "the event type"),
        ("num_events", LONG, "its events in the training window when it was added"),
        ("first_seen_at", TIME, "its first event in that window"),
    ),
    is_pinned=True,
)

SEQUENCES = Table(
    "sequences",
    "One user's history up to max_tokens, ragged",
    "sequences",
    _columns(
        ("sequence_id", TEXT, "hash of the user, the split and the row's place in the history"),
        _USER_ID,
        ("split", TEXT, "train, validation or test"),
        ("tokens", INTS, "items, oldest first"),
        ("event_types", INTS, "event types, token by token"),
        ("values", t.ArrayType(t.FloatType()), "values, null where there is none"),
        ("session_starts", INTS, "offsets in tokens at which a session begins; the first is 0"),
        ("event_times", t.ArrayType(LONG), "epoch seconds, token by token"),
        ("first_target", t.IntegerType(), "positions from here on are predicted; what stands before is context"),
        ("started_at", TIME, "time of the first token"),
        (
            "features",
            t.ArrayType(t.FloatType()),
            "model.features of the first token, then of the second, ...; null without any",
        ),
        ("outcome_places", INTS, "moments that are asked about: after which token; null without model.outcomes"),
        ("outcome_elapsed_seconds", t.ArrayType(LONG), "moment by moment, the time from the latest event to it"),
        (
            "outcome_labels",
            t.ArrayType(t.FloatType()),
            "model.outcomes of the first moment, then of the second, ...: 0 or 1, or log(1 + amount); null where not known yet",
        ),
    ),
    ("split",),
    # A reader shuffles and shards row groups: some ten thousand rows are quick to read and still many groups.
    rows_per_group=16_384,
    is_pinned=True,
    added_later=("features", "outcome_places", "outcome_elapsed_seconds", "outcome_labels"),
    is_derived=True,
)

MODELS = Table(
    "models",
    "One trained model",
    "train",
    _columns(
        ("model_id", TEXT, "the model"),
        ("created_at", TIME, "when training ended"),
        ("config", TEXT, "model and training settings, JSON"),
        ("table_versions", TEXT, "versions of the tables it was trained on, JSON"),
        ("metrics", TEXT, "metrics at the end of training, and under gate those that the gate decided by, JSON"),
        ("artifact", TEXT, "folder of weights and manifest, from the root of the warehouse; null once it was removed"),
        ("alias", TEXT, "champion: the one that scores; challenger: it waits for the gate; archived: any other"),
        ("reason", TEXT, "why it has this alias"),
        ("code_version", TEXT, "the program that trained it: its version, and its commit where that is known"),
        ("changed_at", TIME, "since when it has this alias"),
        (
            "moves",
            t.ArrayType(
                _columns(
                    ("alias", TEXT, "the alias that it got"),
                    ("at", TIME, "when"),
                    ("cause", TEXT, "what moved it: train, gate, hand, rollback, or followed by another model"),
                    ("reason", TEXT, "why"),
                    ("former", TEXT, "of a champion, the model that it followed and a rollback returns to; else null"),
                )
            ),
            "every alias that it ever got, the oldest first",
        ),
    ),
    added_later=("code_version", "changed_at", "moves"),
)

TRAINING_METRICS = Table(
    "training_metrics",
    "One measurement during training",
    "train",
    _columns(
        _MODEL_ID,
        ("step", LONG, "optimizer steps done"),
        ("name", TEXT, "what was measured"),
        ("value", t.DoubleType(), "its value"),
        ("at", TIME, "when"),
    ),
)

EVALUATION = Table(
    "evaluation",
    "One metric of one recommender on a slice of the test positions, or how much one has more of it than another",
    "evaluate",
    _columns(
        ("model_id", TEXT, "the model that the run evaluated"),
        (
            "recommender",
            TEXT,
            "whose figure this is: model, champion, or the name of a baseline; rfm_regression for outcomes",
        ),
        (
            "against",
            TEXT,
            "the recommender whose figure on the same positions was subtracted, the two resampled alike; null for the figure itself",
        ),
        (
            "slice",
            TEXT,
            "the positions it is of: all; by place in the session first_in_session or within_session, and of the latter session_position_1, "
            "session_position_2_to_4, session_position_5_to_9, session_position_10_or_more; by the sessions that the user had before, in the "
            "row of sequences, history_new (none), history_few (1 to 4), history_many (5 or more); by the time since the event before "
            "gap_below_minute, gap_below_hour, gap_below_day, gap_below_week, gap_week_or_more, each from where the one before ends; by the "
            "popularity in training of the item that came item_popularity_decile_1 (the least popular tenth of the items) to "
            "item_popularity_decile_10, item_unknown (not in the vocabulary); by the probability of the first item of the list confidence_1 to "
            "confidence_10, with bounds 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, and all above such a bound confidence_at_least_B. Of the "
            "moments at which an outcome is asked about: outcome_decile_1 (the likeliest tenth) to outcome_decile_10",
        ),
        (
            "name",
            TEXT,
            "accuracy, recall@k, mrr@k, ndcg@k: means over positions, with one relevant item each, so that what others call the hit rate over "
            "positions is recall@k. Of all positions also hit_rate@k: share of sessions with a hit within k at any position; "
            "novelty@k: bits of self-information of a recommended item; "
            "popularity_bias@k: popularity percentile of a recommended item less that of the item that came, from -1 to 1; diversity@k: "
            "share of pairs in a list whose evaluate.diversity_attribute differs; coverage@k: share of the vocabulary in any list. Of a model also "
            "confidence: mean probability of the first item; calibration_error: mean |accuracy - confidence| of the bins; answered: share of "
            "positions above the bound. OUTCOME.auc, .average_precision, .brier, .brier_skill, .calibration_error, .lift, .gain, ...: see "
            "llm_spark/evaluation/outcome_kernel.py",
        ),
        (
            "value",
            t.DoubleType(),
            "the metric; the true item's rank is among the whole vocabulary, with ties counted against it",
        ),
        (
            "ci_low",
            t.DoubleType(),
            "lower end of the 95 % interval, users being what is sampled: a bootstrap's percentile, of coverage@k by a jackknife; "
            "null where a single user is all there is",
        ),
        ("ci_high", t.DoubleType(), "upper end"),
        (
            "num_examples",
            LONG,
            "what the value is a mean over: predicted positions; of hit_rate@k sessions, of novelty@k and popularity_bias@k recommended "
            "items, of diversity@k lists; of coverage@k the positions whose lists were looked at",
        ),
        ("sequences_version", LONG, "version of the sequences table it was measured on"),
    ),
    added_later=("against",),
)

_REASONS = t.ArrayType(
    _columns(
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
    _columns(
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
        _MODEL_ID,
        _SESSIONS_VERSION,
        _SCORED_AT,
        _RUN_ID,
    ),
    ("as_of_date",),
    added_later=("reasons", "memory_weight", "sessions_version", "source"),
)

OUTCOMES = Table(
    "outcomes",
    "What is foretold of one user: whether an outcome of model.outcomes will come about, or how much",
    "score",
    _columns(
        (
            "as_of_date",
            t.DateType(),
            "events up to the end of this UTC day were used, and the outcome's days begin there",
        ),
        _USER_ID,
        ("outcome", TEXT, "the name of the outcome"),
        ("probability", t.DoubleType(), "that it comes about within its days; null where the outcome is an amount"),
        (
            "value",
            t.DoubleType(),
            "the amount foretold for its days, in the unit of events.value; null where it is a probability",
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
        _MODEL_ID,
        _SESSIONS_VERSION,
        _SCORED_AT,
        _RUN_ID,
    ),
    ("as_of_date",),
)

USER_MEMORY = Table(
    "user_memory",
    "What one model keeps of one user from night to night: the memory of past sessions, and the steps after them (the window)",
    "score",
    _columns(
        _USER_ID,
        ("user_bucket", t.IntegerType(), "hash of the user modulo the number of buckets, as in sessions"),
        _MODEL_ID,
        ("memory", t.BinaryType(), "float32, little-endian: the user's vector before the first session of the window"),
        (
            "past",
            _columns(
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
        ("as_of_date", t.DateType(), "partition of the user's newest predictions"),
        _RUN_ID,
    ),
    ("user_bucket",),
)

DATA_QUALITY = Table(
    "data_quality",
    "One measured check of one run",
    "every stage",
    _columns(
        _RUN_ID,
        ("stage", TEXT, "the stage that measured"),
        ("name", TEXT, "what was measured"),
        ("subject", TEXT, "of what: a file, a table, a split, a column"),
        ("value", t.DoubleType(), "the measured value"),
        ("limit", t.DoubleType(), "the value that it is held against; null where there is none"),
        (
            "severity",
            TEXT,
            "info: a measurement; warning: look at it; error: the data are at fault, and most stages then refuse to go on",
        ),
        ("detail", TEXT, "in words"),
        ("measured_at", TIME, "when the run began"),
    ),
)

RUNS = Table(
    "runs",
    "One run of a stage",
    "every stage",
    _columns(
        _RUN_ID,
        ("stage", TEXT, "the stage"),
        ("started_at", TIME, "when it began"),
        ("seconds", t.DoubleType(), "how long it took"),
        ("outcome", TEXT, "done; under nightly also refused (the data or a model did not pass a gate) or failed"),
        ("account", TEXT, "rows in, out and rejected by reason, versions read and written, JSON; of a night its steps"),
        ("reason", TEXT, "of a run that is not done, why; else null"),
        ("night_id", TEXT, "the run of `llm-spark nightly` that it was a step of; null for a stage by hand"),
        (
            "as_of_date",
            t.DateType(),
            "the UTC day at whose end it worked; null where that is the day of the newest event",
        ),
    ),
    added_later=("reason", "night_id", "as_of_date"),
)

LOCKS = Table(
    "locks",
    "One lock that a run holds, or held until it was killed; in object storage alone",
    "nightly",
    _columns(
        ("name", TEXT, "what is locked: nightly"),
        ("owner", TEXT, "who holds it: run, process and host"),
        ("token", TEXT, "drawn anew each time that it is taken"),
        ("taken_at", TIME, "since when"),
        ("expires_at", TIME, "until when, unless its owner renews it: one that was killed does not"),
    ),
)

TABLES = {
    table.name: table
    for table in (
        EVENTS,
        EVENTS_REJECTED,
        INGESTED_FILES,
        SESSIONS,
        SESSIONS_SET_ASIDE,
        VOCABULARY,
        EVENT_TYPES,
        SEQUENCES,
        MODELS,
        TRAINING_METRICS,
        EVALUATION,
        PREDICTIONS,
        OUTCOMES,
        USER_MEMORY,
        DATA_QUALITY,
        RUNS,
        LOCKS,
    )
}
