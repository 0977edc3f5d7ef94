"""The certificate of the sequences: honest ones pass under every kind of split, and each way of cheating is caught by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession

from llm_spark.config import SequencesConfig
from llm_spark.pipelines.certificate import violations
from llm_spark.schemas import SESSIONS, VOCABULARY
from llm_spark.transforms.certificate import LAWS, laws_of
from llm_spark.transforms.quality import collapse_repeats
from llm_spark.transforms.sequences import sequences, tokenized_steps
from tests.pipelines.certified_tables import (
    HISTORIES,
    SPLITS,
    START,
    TIMES,
    Tables,
    changed,
    first,
    sessions_of,
    sessions_with_items,
    tables_of,
)

# Sessions with keys of the log, as (user, minutes, items). Repeats end one of each user: collapsed, they stand in no history. u's next session
# begins before that end, and so does w's; v's last begins before an event that is not of the session before it.
OVERLAPPING: list[tuple[str, list[int], str]] = [
    *((user, [minute, minute + 1], "ax") for user in "uvw" for minute in (0, 110)),
    ("u", [300, 305], "xx"),
    ("u", [303, 310], "ab"),
    ("v", [400, 450], "xa"),
    ("v", [410, 455], "aa"),
    ("v", [430, 470], "ab"),
    ("w", [300, 305], "xx"),
    ("w", [303, 310], "aa"),
    ("w", [320], "x"),
]


@pytest.mark.parametrize("split", SPLITS)
def test_honest_sequences_break_no_law(honest: Callable[[str], Tables], split: str) -> None:
    tables = honest(split)
    splits = {row[0] for row in tables.sequences.select("split").distinct().collect()}
    assert splits == {"train", "validation", "test"}
    assert tables.broken() == set()


@pytest.mark.parametrize("split", SPLITS)
def test_honest_sequences_of_overlapping_sessions_with_repeats_collapsed_break_no_law(
    spark: SparkSession, split: str
) -> None:
    sessions = collapse_repeats(sessions_with_items(spark, OVERLAPPING)).localCheckpoint()
    assert sessions.where("num_collapsed > 0").count() == 4
    tables = tables_of(spark, sessions, split, ["a", "x"])
    assert tables.broken() == set()


def test_a_law_is_a_count_for_every_kind_of_split(honest: Callable[[str], Tables]) -> None:
    assert laws_of("time") == laws_of("leave_last_session_out") == list(LAWS)
    assert set(LAWS) - set(laws_of("leave_last_event_out")) == {"no_session_in_two_splits"}


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("split", ["time", "leave_last_session_out"])
def test_a_row_with_an_event_later_than_what_is_evaluated_after_it_is_caught(
    spark: SparkSession, honest: Callable[[str], Tables], split: str, part: str
) -> None:
    def later(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "w" if split == "time" else "v", part)
        row["event_times"][-1] += 240 * 60

    assert "training_precedes_evaluation" in changed(spark, honest(split), later).broken()


@pytest.mark.parametrize("split", ["time", "leave_last_session_out"])
def test_a_session_predicted_in_two_splits_is_caught(
    spark: SparkSession, honest: Callable[[str], Tables], split: str
) -> None:
    def moved(rows: list[dict[str, Any]]) -> None:
        # The test row now also predicts one event of the session before, which is validation's: not twice, for that one no longer does.
        user = "v" if split == "time" else "u"
        validation, test = first(rows[::-1], user, "validation"), first(rows, user, "test")
        assert len(validation["tokens"]) - validation["first_target"] > 1
        for name in ("tokens", "event_types", "values", "event_times"):
            validation[name] = validation[name][:-1]
        test["first_target"] -= 1

    broken = changed(spark, honest(split), moved).broken()
    assert {"no_session_in_two_splits", "every_event_in_its_split"} <= broken
    assert "no_event_predicted_twice" not in broken


@pytest.mark.parametrize("split", SPLITS)
def test_an_event_predicted_twice_is_caught(spark: SparkSession, honest: Callable[[str], Tables], split: str) -> None:
    def twice(rows: list[dict[str, Any]]) -> None:
        rows.append(first(rows, "v", "test") | {"sequence_id": "again"})

    tables = changed(spark, honest(split), twice)
    row = first([row.asDict() for row in tables.sequences.collect()], "v", "test")
    assert tables.count("no_event_predicted_twice") == len(row["tokens"]) - row["first_target"]


def test_a_target_that_stands_in_its_own_context_is_caught(
    spark: SparkSession, honest: Callable[[str], Tables]
) -> None:
    def copied(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", "test")
        place = row["first_target"]
        for name in ("tokens", "event_types", "values", "event_times"):
            row[name].insert(place, row[name][place])
        row["first_target"] += 1

    broken = changed(spark, honest("time"), copied).broken()
    assert broken == {"no_target_in_its_own_input", "contents_are_the_events"}


def test_a_target_whose_future_stands_before_it_is_caught(spark: SparkSession, honest: Callable[[str], Tables]) -> None:
    def swapped(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", "test")
        assert row["event_times"][-1] > row["event_times"][-2]
        for name in ("tokens", "event_types", "values", "event_times"):
            row[name][-2:] = row[name][-2:][::-1]

    tables = changed(spark, honest("time"), swapped)
    assert tables.broken() == {"no_target_in_its_own_input", "contents_are_the_events"}
    assert tables.count("no_target_in_its_own_input") == 1


def test_events_that_no_row_predicts_are_missed(spark: SparkSession, honest: Callable[[str], Tables]) -> None:
    def lost(rows: list[dict[str, Any]]) -> None:
        rows.remove(first(rows, "w", "validation"))

    tables = changed(spark, honest("time"), lost)
    assert tables.broken() == {"every_event_in_its_split"}
    assert tables.count("every_event_in_its_split") == 2, "w's second session"


def test_a_row_that_predicts_nothing_or_lacks_a_value_is_caught(
    spark: SparkSession, honest: Callable[[str], Tables]
) -> None:
    def damaged(rows: list[dict[str, Any]]) -> None:
        first(rows, "u", "train")["first_target"] = 99
        first(rows, "v", "train")["values"].pop()

    assert changed(spark, honest("time"), damaged).count("rows_are_whole") == 2


def test_an_item_that_occurs_only_in_test_is_caught_by_name(
    spark: SparkSession, honest: Callable[[str], Tables]
) -> None:
    tables = honest("time")
    only_in_test = sessions_of(spark, [("w", [220, 221])]).collect()[0].asDict()
    only_in_test |= {"session_id": "s99", "item_ids": ["new", "new"]}
    sessions = tables.sessions.unionByName(spark.createDataFrame([Row(**only_in_test)], SESSIONS.schema))
    items = tables.vocabulary.unionByName(
        spark.createDataFrame([(7, "new", 2, START)], VOCABULARY.schema)  # pretends to have been seen early
    )
    rows = sequences(
        tokenized_steps(sessions, items, tables.event_types), SequencesConfig(max_tokens=8, burn_in_tokens=3), TIMES
    ).localCheckpoint()
    found = violations(rows, sessions, items, tables.event_types, tables.note)
    assert found["vocabulary_from_training"] == (1, ", such as 'new'")
    # It stands where unknown has to: twice, each time as the later of two neighbours.
    assert {name: number for name, (number, _) in found.items() if number} == {
        "vocabulary_from_training": 1,
        "contents_are_the_events": 2,
    }
    known_before = tables.note | {"added_from": {"vocabulary": 8, "event_types": 3}}
    assert violations(rows, sessions, items, tables.event_types, known_before)["vocabulary_from_training"][0] == 1


def test_an_added_item_must_occur_as_often_as_the_settings_ask_and_one_of_an_earlier_night_but_once(
    honest: Callable[[str], Tables],
) -> None:
    # Of training's 20 events before minute 100 that end before it: i0..i4 by minute modulo 5.
    tables = honest("time")
    trained = [m for _, minutes in HISTORIES if minutes[-1] < 100 for m in minutes]
    rare = sum(sum(m % 5 == item for m in trained) < 3 for item in range(5))
    assert rare > 0
    asked = tables.note | {"made_from": {"min_item_count": 3}}
    assert replace(tables, note=asked).count("vocabulary_from_training") == rare
    earlier = asked | {"added_from": {"vocabulary": 7, "event_types": 2}}
    assert replace(tables, note=earlier).count("vocabulary_from_training") == 0
