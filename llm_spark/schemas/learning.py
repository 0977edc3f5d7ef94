"""What models learn from, the models, and how they were measured."""

from __future__ import annotations

from pyspark.sql import types as t

from llm_spark.config.outcomes import MOMENT_COLUMNS, OPENING_COLUMNS
from llm_spark.schemas.table import INTS, LONG, MODEL_ID, TEXT, TIME, USER_ID, Table, columns

SPLITS = ("train", "validation", "test")

VOCABULARY = Table(
    "vocabulary",
    "One item the model knows; append-only, tokens are never reused. 0 is padding, 1 unknown",
    "sequences",
    columns(
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
    columns(
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
    columns(
        ("sequence_id", TEXT, "hash of the user, the split and the row's place in the history"),
        USER_ID,
        ("split", TEXT, "train, validation or test"),
        ("tokens", INTS, "items, oldest first"),
        ("event_types", INTS, "event types, token by token"),
        ("values", t.ArrayType(t.FloatType()), "values, null where there is none"),
        ("session_starts", INTS, "offsets in tokens at which a session begins; the first is 0"),
        ("event_times", t.ArrayType(LONG), "epoch seconds, token by token"),
        (
            "first_target",
            t.IntegerType(),
            "positions from here on are predicted; what stands before is context. None is predicted where outcomes alone are asked about",
        ),
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
        (
            "num_sessions_before",
            t.IntegerType(),
            "the user's sessions before the row's first one; null without model.outcomes, as the three that follow",
        ),
        ("first_event_time", LONG, "epoch seconds of the user's first event, in this row or before it"),
        (
            "latest_event_time_before",
            LONG,
            "epoch seconds of the latest event before the row; of its first token where it begins the history",
        ),
        ("value_sum_before", t.DoubleType(), "sum of the values before the row, as the model reads them"),
    ),
    ("split",),
    # A reader shuffles and shards row groups: some ten thousand rows are quick to read and still many groups.
    rows_per_group=16_384,
    is_pinned=True,
    added_later=("features", *MOMENT_COLUMNS, *OPENING_COLUMNS),
    is_derived=True,
)

MODELS = Table(
    "models",
    "One trained model",
    "train",
    columns(
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
                columns(
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
    columns(
        MODEL_ID,
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
    columns(
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
