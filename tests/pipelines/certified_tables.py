"""Sequences as their stage makes them, small enough to be cheated with by hand, for the tests of the certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession

from llm_spark.config import OutcomeConfig, SequencesConfig
from llm_spark.pipelines.certificate import violations
from llm_spark.pipelines.features import features_note
from llm_spark.pipelines.outcomes import outcomes_note
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, VOCABULARY
from llm_spark.transforms.certificate import Coding, Contents, laws_of, misplaced_contents
from llm_spark.transforms.sequences import outcome_rules, sequences, tokenized_steps
from llm_spark.transforms.splits import SplitTimes
from tests.session_rows import session_row, sessions_frame

START = datetime(2025, 1, 1)
TIMES = SplitTimes(START + timedelta(minutes=100), START + timedelta(minutes=200))
AS_LOGGED = ValueTreatment()
SPLITS = ("time", "leave_last_session_out", "leave_last_event_out")
# Sessions as (user, minutes); items follow the minute. u's fourth session runs over the start of validation, v's last two overlap, w has two
# sessions and x a single event.
HISTORIES: list[tuple[str, list[int]]] = [
    ("u", [0, 1, 2]),
    ("u", [40, 40, 41]),
    ("u", [60]),
    ("u", [95, 99, 100, 104]),
    ("u", [199, 200, 201]),
    ("u", [240, 241]),
    ("v", [3, 4]),
    ("v", [50, 51, 52]),
    ("v", [140, 150, 160]),
    ("v", [145, 155, 165, 166]),
    ("v", [210, 230]),
    ("v", [215, 231]),
    ("w", [5, 7]),
    ("w", [110, 115]),
    ("x", [9]),
]


@dataclass(frozen=True)
class Tables:
    sequences: DataFrame
    sessions: DataFrame
    vocabulary: DataFrame
    event_types: DataFrame
    note: dict[str, Any]

    def broken(self) -> set[str]:
        found = violations(self.sequences, self.sessions, self.vocabulary, self.event_types, self.note)
        return {name for name in laws_of(self.note["split"]) if found[name][0]}

    def count(self, law: str) -> int:
        return violations(self.sequences, self.sessions, self.vocabulary, self.event_types, self.note)[law][0]

    def num_misplaced(self) -> int:
        """As the law of the contents counts them, without the others."""
        items, types = (
            Coding(self.vocabulary, "item_id", "tokens", "item_ids", 2, 1),
            Coding(self.event_types, "event_type", "event_types", "event_types", 2, 1),
        )
        contents = Contents.of(0, with_values=True, num_features=0)
        found = misplaced_contents(self.sequences, self.sessions, items, types, "time", TIMES, contents).first()
        assert found is not None
        return found["num"]


def sessions_of(spark: SparkSession, histories: list[tuple[str, list[int]]]) -> DataFrame:
    return sessions_with_items(spark, [(user, minutes, [f"i{m % 5}" for m in minutes]) for user, minutes in histories])


def sessions_with_items(spark: SparkSession, histories: Sequence[tuple[str, list[int], Sequence[str]]]) -> DataFrame:
    rows = []
    for number, (user, minutes, items) in enumerate(histories):
        times = [START + timedelta(minutes=minute) for minute in minutes]
        size = len(minutes)
        values = [float(minute) for minute in minutes]
        rows.append(session_row(f"s{number:02}", user, times, items, ["view"] * size, values))
    return sessions_frame(spark, rows)


def tables_of(
    spark: SparkSession,
    sessions: DataFrame,
    split: str,
    item_ids: Sequence[str] = ("i0", "i1", "i2", "i3", "i4"),
    outcomes: Sequence[OutcomeConfig] = (),
    treatment: ValueTreatment = AS_LOGGED,
    features: Sequence[str] = (),
) -> Tables:
    """As the stage makes them, `item_ids` and views known by training."""
    vocabulary = [(2 + place, name, 1, START) for place, name in enumerate(item_ids)]
    event_types = spark.createDataFrame([(2, "view", 1, START)], EVENT_TYPES.schema).localCheckpoint()
    items = spark.createDataFrame(vocabulary, VOCABULARY.schema).localCheckpoint()
    steps = tokenized_steps(treatment.clipped(sessions), items, event_types, bool(features))
    timed = split == "time"
    config = SequencesConfig(max_tokens=8, burn_in_tokens=3, split=split)
    newest = max(row["ended_at"] for row in sessions.collect())
    asked = outcome_rules(outcomes, {"view": 2}, TIMES, newest) if outcomes else None
    rows = sequences(steps, config, TIMES if timed else None, treatment.fill, asked).localCheckpoint()
    note = {
        "split": split,
        "train_until": str(TIMES.train_until) if timed else None,
        "validation_until": str(TIMES.validation_until) if timed else None,
        "made_from": {"min_item_count": 1, **features_note(list(features)), **outcomes_note(outcomes)},
        "added_from": {"vocabulary": 2, "event_types": 2},
        "values": treatment.as_json(),
    }
    return Tables(rows, sessions, items, event_types, note)


def changed(spark: SparkSession, tables: Tables, change: Callable[[list[dict[str, Any]]], None]) -> Tables:
    """The tables with the rows of sequences, as dictionaries, changed."""
    rows = [row.asDict() for row in tables.sequences.collect()]
    rows.sort(key=lambda row: (row["user_id"], row["split"], row["event_times"][row["first_target"] :]))
    change(rows)
    columns = tables.sequences.columns
    again = spark.createDataFrame([Row(*[row[name] for name in columns]) for row in rows], SEQUENCES.schema)
    return replace(tables, sequences=again)


def first(rows: list[dict[str, Any]], user: str, split: str) -> dict[str, Any]:
    return next(row for row in rows if (row["user_id"], row["split"]) == (user, split))
