"""The certificate looks at what rows hold: items, types, values and features of their events, and labels that know no more than their split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.config import OutcomeConfig
from llm_spark.pipelines.certificate import violations
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import SEQUENCES, VOCABULARY
from llm_spark.tokens import UNKNOWN_TOKEN
from llm_spark.transforms import certificate
from llm_spark.transforms.certificate import open_labels
from llm_spark.transforms.quality import Bounds
from tests.pipelines.certified_tables import (
    HISTORIES,
    START,
    Tables,
    changed,
    first,
    sessions_of,
    sessions_with_items,
    tables_of,
)

WITHIN_30_AND_60_MINUTES = [OutcomeConfig("soon", ["view"], 30 / 1440), OutcomeConfig("later", [], 60 / 1440)]


@pytest.mark.parametrize(("split", "name"), [("train", "tokens"), ("test", "tokens"), ("test", "values")])
def test_contents_shifted_against_their_times_are_caught(
    spark: SparkSession, honest: Callable[[str], Tables], split: str, name: str
) -> None:
    def shifted(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", split)
        row[name] = [*row[name][1:], row[name][0]]  # every input shows its target

    assert changed(spark, honest("time"), shifted).broken() == {"contents_are_the_events"}


def test_another_order_within_one_second_is_caught(spark: SparkSession) -> None:
    histories = [("u", [0, 0, 0, 1], "abca"), ("u", [110, 111], "ab"), ("u", [210, 210, 210], "cab")]
    tables = tables_of(spark, sessions_with_items(spark, histories).localCheckpoint(), "time", "abc")
    assert tables.num_misplaced() == 0

    def turned(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", "test")
        row["tokens"][-2:] = row["tokens"][-2:][::-1]

    # 210 comes after 111 as 4, and the two after it as 3 and 2: two pairs.
    assert changed(spark, tables, turned).num_misplaced() == 2


def test_an_unknown_item_stands_as_unknown_and_as_nothing_else(spark: SparkSession) -> None:
    histories = [("u", [0, 1, 2], "aba"), ("u", [110, 111], "ab"), ("u", [210, 211, 212], "aza")]
    tables = tables_of(spark, sessions_with_items(spark, histories).localCheckpoint(), "time", "ab")
    # Of an earlier night, and not in this training: unknown too.
    earlier = spark.createDataFrame([(4, "z", 3, START)], VOCABULARY.schema)
    known = replace(tables, vocabulary=tables.vocabulary.unionByName(earlier))
    assert tables.num_misplaced() == known.num_misplaced() == 0

    def told(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", "test")
        row["tokens"] = [3 if token == UNKNOWN_TOKEN else token for token in row["tokens"]]

    for each in (tables, known):
        assert changed(spark, each, told).num_misplaced() == 2, "to it and from it"


def test_values_are_compared_as_clipped_and_not_where_missing_ones_were_filled(spark: SparkSession) -> None:
    sessions = sessions_of(spark, HISTORIES)
    missing = F.transform("event_values", lambda value, place: F.when(place != 1, value))
    sessions = sessions.withColumn("event_values", missing).localCheckpoint()
    bounds = {"view": Bounds(3.0, 150.0)}

    def shifted(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", "test")
        row["values"] = [*row["values"][1:], 1.0]

    for rule, broken in (("keep", {"contents_are_the_events"}), ("forward", set())):
        tables = tables_of(spark, sessions, "time", treatment=ValueTreatment(rule, bounds))
        assert tables.broken() == set()
        assert changed(spark, tables, shifted).broken() == broken


def test_features_are_compared_with_those_of_the_events(spark: SparkSession) -> None:
    sessions = sessions_of(spark, HISTORIES)
    features = F.transform("event_values", lambda value: F.array(value * 1.1, F.when(value % 2 == 0, value)))
    sessions = sessions.withColumn("event_features", features).localCheckpoint()
    tables = tables_of(spark, sessions, "time", features=["price", "quantity"])
    assert tables.broken() == set()

    def shifted(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "u", "test")
        row["features"] = [*row["features"][2:], 1.0, 1.0]

    assert changed(spark, tables, shifted).broken() == {"contents_are_the_events"}


def test_of_many_positions_those_of_some_users_are_compared_and_the_certificate_says_so(
    spark: SparkSession, honest: Callable[[str], Tables], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["tokens"] = [*row["tokens"][1:], row["tokens"][0]]

    tables = changed(spark, honest("time"), shifted)
    num_all = tables.count("contents_are_the_events")
    num_positions = tables.sequences.agg(F.sum(F.size("tokens"))).first()[0]
    monkeypatch.setattr(certificate, "MAX_POSITIONS_COMPARED", num_positions / 2)
    number, where = violations(tables.sequences, tables.sessions, tables.vocabulary, tables.event_types, tables.note)[
        "contents_are_the_events"
    ]
    assert 0 < number < num_all
    assert where.startswith(" of one user in 2, such as in row '")
    assert honest("time").broken() == set()


def test_a_label_that_looks_beyond_what_its_split_may_know_is_caught(spark: SparkSession) -> None:
    sessions = sessions_of(spark, HISTORIES).localCheckpoint()
    tables = tables_of(spark, sessions, "time", outcomes=WITHIN_30_AND_60_MINUTES)
    labels = tables.sequences.select("split", F.explode("outcome_labels").alias("label"))
    found = {(row[0], row[1]): row[2] for row in labels.groupBy("split", F.isnull("label")).count().collect()}
    assert set(found) == {(split, censored) for split in ("train", "validation", "test") for censored in (True, False)}
    assert tables.broken() == set()

    def uncensored(rows: list[dict[str, Any]]) -> None:
        for split in ("train", "validation", "test"):
            row = next(row for row in rows if row["split"] == split and None in row["outcome_labels"])
            row["outcome_labels"][row["outcome_labels"].index(None)] = 1.0

    leaky = changed(spark, tables, uncensored)
    found_there = violations(leaky.sequences, leaky.sessions, leaky.vocabulary, leaky.event_types, leaky.note)
    assert {name: number for name, (number, _) in found_there.items() if number} == {"labels_close_in_their_split": 3}
    # Under a note that knows of no outcome no label can be told from a leak.
    unnoted = replace(tables, note=tables.note | {"made_from": {"min_item_count": 1}})
    num_labels = sum(number for (_, censored), number in found.items() if not censored)
    assert unnoted.count("labels_close_in_their_split") == num_labels


@pytest.mark.parametrize(("minute", "num_open"), [(39, 0), (40, 1)])
def test_a_window_that_ends_with_the_split_is_open(spark: SparkSession, minute: int, num_open: int) -> None:
    # Training ends at minute 100. The latest event before the moment is that of minute 30, though the one at its place is earlier.
    start = 1_735_689_600
    row = {
        "sequence_id": "s",
        "split": "train",
        "event_times": [start + 60 * at for at in (30, 20, 95)],
        "outcome_places": [1],
        "outcome_elapsed_seconds": [60 * (minute - 30)],
        "outcome_labels": [1.0],
    }
    kinds = [f"{name} {SEQUENCES.schema[name].dataType.simpleString()}" for name in row]
    rows = spark.createDataFrame([tuple(row.values())], ", ".join(kinds))
    known_until = {"train": (start + 6000) * 1_000_000}
    found = open_labels(rows, [3600 * 1_000_000], known_until).first()
    assert (found["num"], found["row"]) == ((1, "s") if num_open else (0, None))
