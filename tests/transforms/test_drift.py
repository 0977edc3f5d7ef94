"""What drift counts, on rows worked out by hand."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import DriftConfig
from llm_spark.schemas import EVENTS, PREDICTIONS, VOCABULARY
from llm_spark.transforms import drift
from llm_spark.transforms.drift_kernel import Calendar
from tests.session_rows import session_row, sessions_frame

SUNDAY = date(2025, 3, 2)
NOON = datetime(2025, 3, 2, 12)
SUNDAYS = Calendar(SUNDAY, window_days=1, num_references=2)
# Days before that Sunday, hour, user, item, type, value, agent: two Sundays and a Monday that lies in no window.
ROWS = [
    (0, 9, "u-1", "item-007", "view", None, "web"),
    (0, 9, "u-2", "item-007", "buy", 3.5, None),
    (0, 23, "u-2", "item-008", "buy", None, None),
    (6, 10, "u-9", "item-009", "view", None, "web"),
    (7, 9, "u-1", "item-008", "view", None, "web"),
]


def events(spark: SparkSession, rows: list[tuple] | None = None) -> DataFrame:
    full = []
    for number, (days_ago, hour, user, item, kind, value, agent) in enumerate(ROWS if rows is None else rows):
        time = datetime(2025, 3, 2, hour) - timedelta(days=days_ago)
        file = f"raw/{'app' if user == 'u-2' else 'web'}/{time:%Y-%m-%d}.jsonl.gz"
        attributes = {"agent": agent} if agent else {}
        named = (f"e{number}", user, item, kind, time, value, None, attributes, time.date(), file, NOON, "run")
        full.append(named)
    return spark.createDataFrame(full, EVENTS.schema)


def found(counts: DataFrame) -> dict[tuple, int]:
    """(measure, window, category) -> number; 0 are left out."""
    return {tuple(row)[:-1]: row["num"] for row in counts.collect() if row["num"]}


def test_events_are_counted_by_window_and_category(spark: SparkSession) -> None:
    counts = drift.event_counts(events(spark), SUNDAYS, ["agent"]).unionByName(
        drift.user_counts(events(spark), SUNDAYS)
    )
    assert found(counts) == {
        ("event_types", 0, "view"): 1,
        ("event_types", 0, "buy"): 2,
        ("event_types", 1, "view"): 1,
        ("valueless", 0, "view"): 1,
        ("valueless", 0, "buy"): 1,
        ("valueless", 1, "view"): 1,
        ("hours", 0, "9"): 2,
        ("hours", 0, "23"): 1,
        ("hours", 1, "9"): 1,
        ("sources", 0, "raw/web/#-#-#.jsonl"): 1,
        ("sources", 0, "raw/app/#-#-#.jsonl"): 2,
        ("sources", 1, "raw/web/#-#-#.jsonl"): 1,
        ("item_ids", 0, "a-9 of 8"): 3,
        ("item_ids", 1, "a-9 of 8"): 1,
        ("user_ids", 0, "a-9 of 3"): 3,
        ("user_ids", 1, "a-9 of 3"): 1,
        ("totals", 0, "events"): 3,
        ("totals", 1, "events"): 1,
        ("totals", 0, "users"): 2,
        ("totals", 1, "users"): 1,
        ("totals", 0, "missing agent"): 2,
    }


def test_the_form_of_an_id_keeps_its_signs_and_length_and_no_letter(spark: SparkSession) -> None:
    forms = {
        "item-00012": "a-9 of 10",
        "12": "9 of 2",
        "85123A": "9a of 6",
        "0f3ac9d1": "h of 8",
        "3f1b-22": "h-9 of 7",
        "Größe 7": "a 9 of 7",
    }
    rows = spark.createDataFrame([(identifier,) for identifier in forms], "id string")
    shown = rows.select("id", drift.id_form(F.col("id")).alias("form")).collect()
    assert {row["id"]: row["form"] for row in shown} == forms


def test_an_item_is_new_without_an_event_in_so_many_days_before_its_window(spark: SparkSession) -> None:
    week = Calendar(SUNDAY, window_days=7, num_references=1)
    rows = [
        (
            0,
            9,
            "u",
            "returns",
            "view",
            None,
            None,
        ),  # in the window; last seen before it 10 days before its first day, day 6
        (3, 9, "u", "returns", "view", None, None),
        (16, 9, "u", "returns", "view", None, None),
        (0, 9, "u", "stays", "view", None, None),  # 4 days before the window
        (10, 9, "u", "stays", "view", None, None),
        (2, 9, "u", "first", "view", None, None),
        (1, 9, "u", "first", "view", None, None),
    ]
    vocabulary = spark.createDataFrame([(2, "stays", 1, NOON), (3, "gone", 1, NOON)], VOCABULARY.schema)
    items = drift.item_windows(events(spark, rows), vocabulary, week, new_item_days=9)
    shown = {(row["item_id"], row["window"]): tuple(row)[2:] for row in items.collect()}
    assert shown == {
        ("returns", 0): (2, True, True),
        ("stays", 0): (1, False, False),
        ("stays", 1): (1, True, False),
        ("first", 0): (2, True, True),
    }
    assert found(drift.item_counts(items)) == {
        ("totals", 0, "new items"): 4,
        ("totals", 1, "new items"): 1,
        ("totals", 0, "unknown items"): 4,
        ("totals", 0, "item squares"): 9,
        ("totals", 1, "item squares"): 1,
        ("item_mix", 0, "returns"): 2,
        ("item_mix", 0, "stays"): 1,
        ("item_mix", 0, "first"): 2,
        ("item_mix", 1, "stays"): 1,
    }
    ten = drift.item_windows(events(spark, rows), None, week, new_item_days=10)
    assert {row["item_id"]: row["is_new"] for row in ten.where("window = 0").collect()} == {
        "returns": False,
        "stays": False,
        "first": True,
    }


def test_sessions_are_classed_by_their_events_and_predictions_by_their_chance(spark: SparkSession) -> None:
    def session(name: str, days_ago: int, num_events: int) -> tuple:
        times = [NOON - timedelta(days=days_ago)] * num_events
        return session_row(name, "u", times, ["a"] * num_events, ["view"] * num_events, [None] * num_events)

    sessions = [session("a", 0, 1), session("b", 0, 6), session("c", 0, 5), session("d", 7, 120), session("e", 8, 3)]
    by_length = drift.session_lengths(sessions_frame(spark, sessions), SUNDAYS)
    chances = [
        (0, "u", 1, 0.6),
        (0, "v", 1, 0.2),
        (0, "w", 1, 0.0),
        (0, "w", 2, 0.9),
        (7, "u", 1, 0.25),
        (3, "u", 1, 0.5),
    ]
    by_chance = drift.score_distribution(predictions(spark, [(*row[:3], "a", row[3]) for row in chances]), SUNDAYS)
    assert found(by_length.unionByName(by_chance)) == {
        ("session_length", 0, "1"): 1,
        ("session_length", 0, "5"): 2,
        ("session_length", 1, "100"): 1,
        ("score_distribution", 0, "0"): 1,
        ("score_distribution", 0, "2"): 1,
        ("score_distribution", 0, "40"): 1,
        ("score_distribution", 1, "2"): 1,
    }


def predictions(spark: SparkSession, rows: list[tuple]) -> DataFrame:
    """Days before that Sunday, user, rank, item, probability."""
    full = [
        (SUNDAY - timedelta(days=days_ago), user, rank, item, "model", 0.0, chance, None, None, "m", 0, NOON, "run")
        for days_ago, user, rank, item, chance in rows
    ]
    return spark.createDataFrame(full, PREDICTIONS.schema)


@pytest.mark.parametrize(
    ("k", "hits"),
    [(2, {"hits": 2, "hits_squared": 2, "hits_trials": 3}), (1, {"hits": 1, "hits_squared": 1, "hits_trials": 1})],
)
def test_a_hit_is_a_next_event_within_the_days_that_stands_among_the_first_k(
    spark: SparkSession, k: int, hits: dict[str, int]
) -> None:
    # Windows of two days, and three days to follow: predictions as of days 3 and 4 are judged, and of days 10 and 11 the earlier ones.
    pairs = Calendar(SUNDAY, window_days=2, num_references=1)
    rows = [
        (2, 9, "hit", "a", "view", None, None),  # the first event after day 3
        (2, 8, "miss", "x", "view", None, None),
        (2, 9, "miss", "a", "view", None, None),  # comes second
        (3, 9, "twice", "b", "view", None, None),  # after day 4, not after day 3
        (1, 9, "twice", "x", "view", None, None),  # after day 3
        (3, 9, "late", "a", "view", None, None),  # of the very day: not after it
        (9, 9, "hit", "a", "view", None, None),  # after day 10
        (0, 9, "nobody", "a", "view", None, None),  # without predictions
    ]
    lists = [
        *[
            (3, user, rank, item, 0.5)
            for user in ("hit", "miss", "twice", "late")
            for rank, item in ((1, "a"), (2, "b"))
        ],
        *[(4, "twice", rank, item, 0.5) for rank, item in ((1, "a"), (2, "b"))],
        (10, "hit", 1, "b", 0.5),
    ]
    counts = drift.hits(predictions(spark, lists), events(spark, rows), pairs, k, within_days=3)
    shown = {category: number for (_, window, category), number in found(counts).items() if window == 0}
    assert shown == {"num_users": 3, "trials": 4, "trials_squared": 6, **hits}
    assert {category for (_, window, category) in found(counts) if window == 1} == {
        "num_users",
        "trials",
        "trials_squared",
    }


def test_all_but_the_most_frequent_categories_of_the_earlier_windows_are_counted_in_groups(spark: SparkSession) -> None:
    rows = [("item_mix", 1, "a", 9), ("item_mix", 2, "a", 1), ("item_mix", 1, "b", 8), ("item_mix", 1, "c", 7)]
    rows += [("item_mix", 0, "flood", 100), ("item_mix", 0, "c", 5), ("item_mix", 0, "b", 1)]
    rows += [
        ("totals", 0, "events", 106),
        ("totals", 0, "users", 3),
        ("totals", 1, "events", 24),
        ("hits", 0, "hits", 1),
    ]
    schema = "measure string, window int, category string, num bigint"
    halves = [spark.createDataFrame(half, schema) for half in (rows[::2], rows[1::2])]
    settings = DriftConfig(num_top_items=2, num_tail_groups=1)
    counts = [tuple(row) for row in drift.grouped(drift.all_counts(halves), settings).collect()]
    assert sorted(count for count in counts if count[0] == "item_mix" and count[3] is None) == [
        ("item_mix", 0, "b", None, 1),
        ("item_mix", 1, "a", None, 9),
        ("item_mix", 1, "b", None, 8),
        ("item_mix", 2, "a", None, 1),
    ]
    assert sorted(count[1:] for count in counts if count[3] is not None) == [(0, None, 0, 105), (1, None, 0, 7)]
    # Totals are no mix: none of them is put into a group.
    assert sorted(count[:3] for count in counts if count[0] != "item_mix") == [
        ("hits", 0, "hits"),
        ("totals", 0, "events"),
        ("totals", 0, "users"),
        ("totals", 1, "events"),
    ]
