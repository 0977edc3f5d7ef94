"""Sessions into histories: tokens for items, one shuffle by user, one sort, one pass of the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import OutcomeConfig, SequencesConfig
from llm_spark.config.outcomes import AMOUNT, MOMENT_COLUMNS, OPENING_COLUMNS
from llm_spark.schemas import SPLITS
from llm_spark.tokens import UNKNOWN_TOKEN
from llm_spark.transforms.fill_kernel import KEEP, ValueFill
from llm_spark.transforms.history_kernel import HistoryRules, SpanChooser, history_batches, split_spans, whole_span
from llm_spark.transforms.identity import stable_id
from llm_spark.transforms.outcome_kernel import OutcomeRule, OutcomeRules
from llm_spark.transforms.splits import SplitTimes

_KERNEL_OUTPUT = """user_id string, split int, row_number int, tokens array<int>, event_types array<int>, values array<float>,
session_starts array<int>, session_ids array<string>, sessions_ended_at array<timestamp>, event_times array<bigint>, first_target int,
started_at timestamp, features array<float>, outcome_places array<int>, outcome_elapsed_seconds array<bigint>, outcome_labels array<float>,
num_sessions_before int, first_event_time bigint, latest_event_time_before bigint, value_sum_before double"""
_HISTORY_COLUMNS = (
    "tokens",
    "event_types",
    "values",
    "session_starts",
    "event_times",
    "first_target",
    "started_at",
    "features",
)
_EPOCH = datetime(1970, 1, 1)


def tokenized_steps(
    sessions: DataFrame, vocabulary: DataFrame, event_types: DataFrame, with_features: bool = False
) -> DataFrame:
    """One row an event, items and event types as tokens; what the vocabulary lacks is unknown. Every event matches at most one token.

    `with_features` where the sessions carry any, in every row.
    """
    carried = ["event_times", "event_values", *(["event_features"] if with_features else [])]
    zipped = F.arrays_zip("item_ids", F.col("event_types").alias("types"), *carried)
    features = [F.col("step.event_features").cast("array<float>").alias("features")] if with_features else []
    steps = sessions.select(
        "user_id",
        "session_id",
        F.col("ended_at").alias("session_ended_at"),
        F.posexplode(zipped).alias("place", "step"),
    )
    named = steps.select(
        "user_id",
        "session_id",
        "session_ended_at",
        "place",
        F.col("step.item_ids").alias("item_id"),
        F.col("step.types").alias("event_type_id"),
        F.col("step.event_times").alias("event_time"),
        F.col("step.event_values").alias("value"),
        *features,
    )
    item_tokens = vocabulary.select("item_id", "token")
    type_tokens = F.broadcast(
        event_types.select(F.col("event_type").alias("event_type_id"), F.col("token").alias("event_type"))
    )
    return (
        named.join(item_tokens, "item_id", "left")
        .join(type_tokens, "event_type_id", "left")
        .select(
            "user_id",
            "session_id",
            "session_ended_at",
            "place",
            "event_time",
            F.coalesce("token", F.lit(UNKNOWN_TOKEN)).alias("token"),
            F.coalesce("event_type", F.lit(UNKNOWN_TOKEN)).alias("event_type"),
            F.col("value").cast("float").alias("value"),
            *(["features"] if with_features else []),
        )
    )


def _histories(
    steps: DataFrame, choose: SpanChooser, fill: ValueFill, outcomes: OutcomeRules | None = None
) -> DataFrame:
    def run_kernel(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return history_batches(batches, choose, fill=fill, outcomes=outcomes)

    # By the end of the session, so that each split is one stretch of the history also where sessions of a user overlap.
    by_user = steps.repartition("user_id").sortWithinPartitions("user_id", "session_ended_at", "session_id", "place")
    return by_user.drop("place").mapInArrow(run_kernel, _KERNEL_OUTPUT)


def sequences(
    steps: DataFrame,
    config: SequencesConfig,
    times: SplitTimes | None,
    fill: ValueFill = KEEP,
    outcomes: OutcomeRules | None = None,
) -> DataFrame:
    """Rows of schemas.SEQUENCES: histories cut into training, validation and test as `config.split` says; `times` where it is by time.
    With `outcomes`, their labels at the times of the row's split; and rows that predict nothing, of users who have but these in it.

    What stands before a split's beginning is context, never a target. By time, no row of training holds an event at or after `train_until`.
    """
    until = (epoch_microseconds(times.train_until), epoch_microseconds(times.validation_until)) if times else (0, 0)
    rules = HistoryRules(config.max_tokens, config.burn_in_tokens, *until, config.split)
    rows = _histories(steps, split_spans(rules), fill, outcomes)
    split = F.element_at(F.array(*[F.lit(name) for name in SPLITS]), F.col("split") + 1)
    sequence_id = stable_id(F.col("user_id"), split, F.col("row_number").cast("string"))
    return rows.select(
        sequence_id.alias("sequence_id"),
        "user_id",
        split.alias("split"),
        *_HISTORY_COLUMNS,
        *MOMENT_COLUMNS,
        *OPENING_COLUMNS,
    )


def outcome_rules(
    outcomes: Sequence[OutcomeConfig], token_of_type: Mapping[str, int], times: SplitTimes, newest: datetime
) -> OutcomeRules:
    """The outcomes as the kernel takes them. Each split knows the events before its end, the last one those before the `newest` of all.

    Every type that an outcome names must be in `token_of_type`.
    """
    rules = tuple(
        OutcomeRule(
            frozenset(token_of_type[name] for name in outcome.event_types) if outcome.event_types else None,
            round(outcome.within_days * 86_400 * 1_000_000),
            outcome.kind == AMOUNT,
        )
        for outcome in outcomes
    )
    train_until, validation_until = (epoch_microseconds(end) for end in (times.train_until, times.validation_until))
    return OutcomeRules(rules, (train_until, validation_until, epoch_microseconds(newest)))


def whole_histories(steps: DataFrame, fill: ValueFill = KEEP) -> DataFrame:
    """One row a user: all steps, and of each session its id and when it ended."""
    sessions = ("session_ids", "sessions_ended_at")
    return _histories(steps, whole_span, fill).select("user_id", *_HISTORY_COLUMNS, *sessions)


def epoch_microseconds(time: datetime) -> int:
    """Of a naive UTC time."""
    return (time - _EPOCH) // timedelta(microseconds=1)
