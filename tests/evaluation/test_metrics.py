"""From frames of ranks to figures, worked by hand; how popular items are, and the popularity baseline."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from llm_spark.evaluation.estimates import Measured
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.metrics import (
    collected_items,
    item_categories,
    item_popularity,
    measured_rows,
    metric_sums,
)
from llm_spark.evaluation.sums_kernel import MetricRules
from tests.evaluation.positions import by_name

HOUR, DAY = 3_600, 86_400
SEQUENCES_DDL = "sequence_id string, user_id string, tokens array<int>, session_starts array<int>, event_times array<bigint>, first_target int"
RANKS_DDL = (
    "sequence_id string, user_id string, position int, session_position int, token int, rank int, top array<int>"
)
# Percentiles of the items 2, 3, 4, 5: 1/8, 3/8, 5/8, 7/8.
RULES = MetricRules((1, 2), Items.counted(np.array([2, 3, 4, 5]), np.array([1, 2, 4, 9])), 60)


@pytest.fixture
def sequences(spark: SparkSession) -> DataFrame:
    """Anna has two sessions, the second of which is predicted from its beginning; Ben has one, predicted from its second item."""
    rows = [
        ("s-anna", "anna", [2, 3, 4, 5, 1], [0, 2], [0, 10, DAY, DAY + 20, DAY + HOUR + 20], 2),
        ("s-ben", "ben", [4, 4, 2], [0], [5, 6, 7], 1),
    ]
    return spark.createDataFrame(rows, SEQUENCES_DDL)


@pytest.fixture
def ranks(spark: SparkSession) -> DataFrame:
    rows = [
        ("s-anna", "anna", 2, 0, 4, 2, [5, 4]),
        ("s-anna", "anna", 3, 1, 5, 4, [2, 3]),
        ("s-anna", "anna", 4, 2, 1, None, [2, 3]),
        ("s-ben", "ben", 1, 1, 4, 3, [2, 3]),
        ("s-ben", "ben", 2, 2, 2, 3, [5, 3]),
    ]
    return spark.createDataFrame(rows, RANKS_DDL)


def test_every_position_is_measured_in_its_session_and_its_slices(ranks: DataFrame, sequences: DataFrame) -> None:
    sums = metric_sums(ranks.repartition(3, "position"), sequences, RULES)
    estimates = Measured.of_rows(measured_rows(sums), RULES).estimates()
    found = by_name(estimates)
    told = {name: (estimate.value, estimate.num_examples) for name, estimate in found.items()}
    expected = {
        "recall@1": (0, 5),
        "recall@2": (1 / 5, 5),
        "mrr@2": (1 / 2 / 5, 5),
        "hit_rate@2": (1 / 2, 2),
        "hit_rate@1": (0, 2),
        "coverage@1": (2 / 4, 5),
        "coverage@2": (4 / 4, 5),
        # The first places hold 5, 2, 2, 2, 5; what came has the percentiles 5/8, 7/8, none, 5/8, 1/8.
        "popularity_bias@1": ((7 + 1 + 1 + 1 + 7) / 8 / 5 - (5 + 7 + 0 + 5 + 1) / 8 / 5, 5),
        "novelty@1": ((3 * np.log2(16 / 1) + 2 * np.log2(16 / 9)) / 5, 5),
    }
    for name, (value, num_examples) in expected.items():
        assert told[name] == (pytest.approx(value, abs=1e-7), num_examples), name
    sizes = {e.slice: e.num_examples for e in estimates if e.name == "accuracy"}
    assert sizes == {
        "all": 5,
        "first_in_session": 1,
        "within_session": 4,
        "session_position_1": 2,
        "session_position_2_to_4": 2,
        "history_few": 3,
        "history_new": 2,
        "gap_below_minute": 3,
        "gap_below_day": 2,
        "item_unknown": 1,
        "item_popularity_decile_2": 1,
        "item_popularity_decile_7": 2,
        "item_popularity_decile_9": 1,
    }
    assert by_name(estimates, "first_in_session")["recall@2"].value == 1
    assert by_name(estimates, "first_in_session")["recall@2"].ci_low is None, "Anna's alone"


def test_the_result_does_not_depend_on_how_spark_divides_the_positions(ranks: DataFrame, sequences: DataFrame) -> None:
    whole = sorted(measured_rows(metric_sums(ranks.coalesce(1), sequences, RULES)))
    assert sorted(measured_rows(metric_sums(ranks.repartition(5, "rank"), sequences, RULES))) == whole


def test_an_item_is_as_popular_as_training_predicts_it_and_its_category_is_its_events_most_frequent_one(
    spark: SparkSession,
) -> None:
    # The first row predicts 2 3 4; the second repeats 3 4 as context and predicts 2 and 5.
    training = spark.createDataFrame([([2, 2, 3, 4], 1), ([3, 4, 2, 5], 2)], "tokens array<int>, first_target int")
    vocabulary = spark.createDataFrame([(2, "a"), (3, "b"), (4, "c"), (5, "d"), (6, "e")], "token int, item_id string")
    events = spark.createDataFrame(
        [
            *(("a", {"kind": kind}) for kind in ("tea", "tea", "cup")),
            *(("b", {"kind": kind}) for kind in ("tea", "cup")),
            ("c", {"other": "x"}),
            ("d", {"kind": "tea"}),
            ("unlisted", {"kind": "cup"}),
        ],
        "item_id string, attributes map<string, string>",
    )
    items = collected_items(item_popularity(vocabulary, training, item_categories(events, "kind")))
    assert items.num_items == 5
    assert items.self_information_V[2:].tolist() == pytest.approx(np.log2([5 / 2, 5, 5, 5, 5]).tolist())
    assert items.percentile_V[2:].tolist() == pytest.approx([0.9, 0.5, 0.5, 0.5, 0.1])
    assert items.category_V is not None
    cup, tea = 1, 2
    assert items.category_V[2:].tolist() == [tea, cup, 0, tea, 0]
    assert collected_items(item_popularity(vocabulary, training)).category_V is None
