"""The baselines as DataFrames: each by hand, against its definition in plain Python on random small histories, and in any partitioning."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyspark.sql
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config.model import BASELINES as NAMES
from llm_spark.evaluation.baselines import BASELINES
from llm_spark.evaluation.baselines.frames import training_sessions
from llm_spark.evaluation.baselines.vsknn import vsknn
from llm_spark.evaluation.baselines.vsknn_kernel import VsknnSettings
from tests.evaluation.plain_baselines import Placed, Row, past_sessions, plain_ranks

DDL = "sequence_id string, user_id string, tokens array<int>, session_starts array<int>, event_times array<bigint>, first_target int"
DAY = 86_400


def frame(spark: SparkSession, rows: Sequence[Row]) -> DataFrame:
    columns = [
        (r.sequence_id, r.sequence_id[0], r.tokens, r.session_starts, r.event_times, r.first_target) for r in rows
    ]
    return spark.createDataFrame(columns, DDL)


def items(spark: SparkSession, tokens: Sequence[int]) -> DataFrame:
    return spark.createDataFrame([(token,) for token in tokens], "token int")


def of_all(names: Sequence[str], *given: Any) -> dict[str, list[pyspark.sql.Row]]:
    """The ranks of several baselines from one Spark job, which is quicker than one each."""
    named = [BASELINES[name](*given).withColumn("name", F.lit(name)) for name in names]
    rows = functools.reduce(DataFrame.unionByName, named).orderBy("sequence_id", "position").collect()
    return {name: [row for row in rows if row["name"] == name] for name in names}


def placed(rows: Sequence[pyspark.sql.Row]) -> Placed:
    found = {(row["sequence_id"], row["position"]): (row["rank"], row["top"]) for row in rows}
    assert len(found) == len(rows)
    return found


# 2 is predicted three times, 3 and 4 twice, 5 and 6 once, 7 never. Row a's second half repeats its end as context.
TRAINING = [
    Row("a1", [2, 3, 4, 2], [0], [10, 11, 12, 13], 1),
    Row("a2", [4, 2, 3, 2, 6, 2], [0, 3], [12, 13, 14, 15 + 8 * DAY, 16 + 8 * DAY, 17 + 8 * DAY], 2),
    Row("b1", [7, 4, 5], [0, 1], [10, 20, 21], 1),
    # Rows that predict nothing, and are there for their outcomes, teach nothing.
    Row("c1", [7], [0], [30], 1),
]
VOCABULARY = [2, 3, 4, 5, 6, 7]
# The session 4, 1 (unknown), 4, 3 is followed by one of 3, 9: 9 is beyond the vocabulary.
TESTS = [
    Row("t", [4, 1, 4, 3, 3, 9], [0, 4], [100, 101, 102, 103, 104, 105], 1),
    Row("s", [2, 3], [0], [100, 101], 2),
]


def test_the_names_that_can_be_configured_are_the_baselines_there_are() -> None:
    assert tuple(BASELINES) == NAMES


def test_sessions_count_once_and_keep_the_event_before_their_first_predicted_one(spark: SparkSession) -> None:
    found = training_sessions(frame(spark, TRAINING)).collect()
    sessions = sorted((row["sequence_id"], row["start"], row["ended_at"], row["tokens"]) for row in found)
    assert sessions == [
        ("a1", 0, 13, [2, 3, 4, 2]),
        ("a2", 0, 14, [2, 3]),
        ("a2", 3, 17 + 8 * DAY, [2, 6, 2]),
        ("b1", 1, 21, [4, 5]),
    ]


# What each has at the five positions, worked out by hand: (rank, the first three). The true items are 1, 4, 3, 3, 9; ranks of 1 and 9 are null.
# Popularity: 2 (3), 3 (2), 4 (2), 5 (1), 6 (1), 7 (0).
BY_HAND = {
    "popularity": [(None, [2, 3, 4]), (3, [2, 3, 4]), (3, [2, 3, 4]), (3, [2, 3, 4]), (None, [2, 3, 4])],
    # Session so far: 4; 4; 4 4; nothing; 3.
    "session_popularity": [(None, [4, 2, 3]), (1, [4, 2, 3]), (3, [4, 2, 3]), (3, [2, 3, 4]), (None, [3, 2, 4])],
    # In the last week of training 2 was predicted twice and 6 once. Seen: 4; 4; 4; 3 4; 3 4.
    "recency": [(None, [4, 2, 6]), (1, [4, 2, 6]), (4, [4, 2, 6]), (1, [3, 4, 2]), (None, [3, 4, 2])],
    # After 4 came 2 and 5, once each; after 3 came 4, once. At position 4 the session before ends in 3.
    "markov": [(None, [2, 5, 3]), (4, [2, 5, 3]), (4, [2, 5, 3]), (3, [4, 2, 3]), (None, [4, 2, 3])],
    # Sessions {2 3 4} {2 3} {2 6} {4 5}. Of 4 (in 2): 5 (in 1) 1/sqrt(22*21), 3 (in 2) 1/sqrt(22*22), 2 (in 3) 1/sqrt(22*23).
    # Of 3 (in 2): 2 with 2/sqrt(22*23), 4 with 1/sqrt(22*22).
    "item_knn": [(None, [5, 3, 2]), (4, [5, 3, 2]), (2, [5, 3, 2]), (3, [2, 4, 3]), (None, [2, 4, 3])],
}


@pytest.fixture(scope="module")
def found_by_hand(spark: SparkSession) -> dict[str, list[pyspark.sql.Row]]:
    return of_all(list(BY_HAND), frame(spark, TESTS), frame(spark, TRAINING), items(spark, VOCABULARY), 3)


@pytest.mark.parametrize("name", list(BY_HAND))
def test_ranks_and_lists_worked_out_by_hand(found_by_hand: dict[str, list[pyspark.sql.Row]], name: str) -> None:
    found = found_by_hand[name]
    assert [(row["rank"], row["top"]) for row in found] == BY_HAND[name]
    assert [(row["position"], row["session_position"], row["token"]) for row in found] == [
        (1, 1, 1),
        (2, 2, 4),
        (3, 3, 3),
        (4, 0, 3),
        (5, 1, 9),
    ]
    assert {(row["sequence_id"], row["user_id"]) for row in found} == {("t", "t")}


def test_vsknn_ranks_worked_out_by_hand(spark: SparkSession) -> None:
    # Without idf. At position 3 the session is 4, 4: sessions {2 3 4} and {4 5} share it and give 1 each: 4 has 2; 2, 3, 5 have 1 each,
    # in the order of their popularity. Position 4 begins a session: that before it, 4 4 3, stands in. 3 weighs 1, 4 weighs (2/3)^2 = 4/9.
    # {2 3 4} is 13/9 like, {2 3} 1, {4 5} 4/9 and gives half of it. So 2 and 3 have 22/9, 4 has 13/9 + 2/9, 5 has 2/9.
    ranks = vsknn(
        frame(spark, TESTS), frame(spark, TRAINING), items(spark, VOCABULARY), 4, VsknnSettings(idf_weight=0.0)
    )
    found = placed(ranks.collect())
    assert found["t", 3] == (3, [4, 2, 3, 5])
    assert found["t", 4] == (2, [2, 3, 4, 5])
    # The four sessions hold 2 five times, 3 and 4 twice, 5 once. With idf,
    with_idf = placed(vsknn(frame(spark, TESTS), frame(spark, TRAINING), items(spark, VOCABULARY), 4).collect())
    # 4: 2 * (1 + 5 ln(4/2)); 5: 1 + 5 ln 4; 3: 1 + 5 ln(4/2); 2: 1.
    assert with_idf["t", 3] == (3, [4, 5, 3, 2])


def random_rows(random: np.random.Generator, prefix: str, num_rows: int, num_items: int, begins: int) -> list[Row]:
    rows = []
    for number in range(num_rows):
        length = int(random.integers(2, 12))
        starts = sorted({0, *random.integers(0, length, 2).tolist()})
        # Some are unknown, some beyond the vocabulary.
        tokens = random.integers(1, num_items + 4, length).tolist()
        times = (begins + np.cumsum(random.integers(0, DAY, length))).tolist()
        rows.append(Row(f"{prefix}{number:02}", tokens, starts, times, int(random.integers(0, length))))
    return rows


@pytest.fixture(scope="module")
def random_case() -> tuple[list[Row], list[Row], list[int]]:
    random = np.random.default_rng(11)
    return random_rows(random, "r", 30, 9, 10 * DAY), random_rows(random, "q", 12, 9, 40 * DAY), list(range(2, 11))


@pytest.fixture(scope="module", params=[(1, 2), (5, 3)])
def found_at_random(
    spark: SparkSession, random_case: tuple[list[Row], list[Row], list[int]], request: pytest.FixtureRequest
) -> dict[str, list[pyspark.sql.Row]]:
    """From rows in so many partitions, dealt to so many parts."""
    training, tests, vocabulary = random_case
    num_partitions, num_parts = request.param
    shuffled = [frame(spark, rows[::-1]).repartition(num_partitions) for rows in (tests, training)]
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", num_parts)
    try:
        return of_all(NAMES, *shuffled, items(spark, vocabulary), 5)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)


@pytest.mark.parametrize("name", NAMES)
def test_any_partitioning_gives_what_the_definition_gives_on_random_histories(
    found_at_random: dict[str, list[pyspark.sql.Row]], random_case: tuple[list[Row], list[Row], list[int]], name: str
) -> None:
    training, tests, vocabulary = random_case
    assert placed(found_at_random[name]) == plain_ranks(name, tests, training, vocabulary, 5)


def test_a_sample_that_is_smaller_than_an_items_sessions_leaves_the_most_recent(
    spark: SparkSession, random_case: tuple[list[Row], list[Row], list[int]]
) -> None:
    training, tests, vocabulary = random_case
    assert len(past_sessions(training)) > 20
    small = VsknnSettings(num_neighbours=2, sample_size=4)
    expected = plain_ranks("vsknn", tests, training, vocabulary, 5, k=2, m=4)
    found = vsknn(frame(spark, tests), frame(spark, training), items(spark, vocabulary), 5, small)
    assert placed(found.collect()) == expected
    assert expected != plain_ranks("vsknn", tests, training, vocabulary, 5)


@pytest.mark.parametrize("name", ["popularity", "vsknn"])
def test_without_training_rows_all_items_are_equal_and_the_target_is_the_last(spark: SparkSession, name: str) -> None:
    ranks = BASELINES[name](frame(spark, TESTS), frame(spark, []), items(spark, VOCABULARY), 3)
    assert placed(ranks.collect())["t", 2] == (6, [2, 3, 4])
