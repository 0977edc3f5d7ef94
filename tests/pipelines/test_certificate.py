"""The certificate of the sequences: honest ones pass under every kind of split, and each way of cheating is caught by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import OutcomeConfig, SequencesConfig
from llm_spark.pipelines.certificate import violations
from llm_spark.pipelines.features import features_note
from llm_spark.pipelines.outcomes import outcomes_note
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tokens import UNKNOWN_TOKEN
from llm_spark.transforms import certificate
from llm_spark.transforms.certificate import LAWS, Coding, Contents, laws_of, misplaced_contents, open_labels
from llm_spark.transforms.quality import Bounds, collapse_repeats
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
WITHIN_30_AND_60_MINUTES = [OutcomeConfig("soon", ["view"], 30 / 1440), OutcomeConfig("later", [], 60 / 1440)]


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


@pytest.fixture(scope="module")
def honest(spark: SparkSession) -> Callable[[str], Tables]:
    """Sequences as the stage makes them, for each kind of split."""
    sessions = sessions_of(spark, HISTORIES).localCheckpoint()
    known: dict[str, Tables] = {}

    def of(split: str) -> Tables:
        if split not in known:
            known[split] = tables_of(spark, sessions, split)
        return known[split]

    return of


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


@pytest.mark.parametrize("split", ["time", "leave_last_session_out"])
def test_a_training_row_with_a_later_event_is_caught(
    spark: SparkSession, honest: Callable[[str], Tables], split: str
) -> None:
    def later(rows: list[dict[str, Any]]) -> None:
        row = first(rows, "w" if split == "time" else "v", "train")
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
