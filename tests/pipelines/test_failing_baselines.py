"""A baseline that fails is named and left out; the others are measured all the same."""

from __future__ import annotations

import logging

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.evaluation import baselines as room
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.baselines import baseline_ranks

ROWS = "sequence_id string, user_id string, tokens array<int>, session_starts array<int>, event_times array<bigint>, first_target int"


def raises_in_a_worker(tests: DataFrame, training: DataFrame, vocabulary: DataFrame, list_length: int) -> DataFrame:
    def kernel(batches):
        raise ValueError("the index is not whole")
        yield from batches

    return tests.mapInArrow(kernel, tests.schema)


def raises_in_planning(tests: DataFrame, training: DataFrame, vocabulary: DataFrame, list_length: int) -> DataFrame:
    return tests.select("no_such_column")


def loses_positions(tests: DataFrame, training: DataFrame, vocabulary: DataFrame, list_length: int) -> DataFrame:
    return tests.where(F.lit(False))


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command that ran before in this process has set up."""
    monkeypatch.setattr(logging.getLogger("llm_spark"), "propagate", True)


@pytest.fixture
def sequences(spark: SparkSession) -> tuple[DataFrame, DataFrame, DataFrame]:
    tests = spark.createDataFrame([("t", "t", [2, 3], [0], [5, 6], 1)], ROWS)
    training = spark.createDataFrame([("a", "a", [2, 3], [0], [1, 2], 1)], ROWS)
    return tests, training, spark.createDataFrame([(2,), (3,)], "token int")


@pytest.mark.parametrize(
    ("failing", "cause"),
    [
        (raises_in_a_worker, "ValueError: the index is not whole"),
        (raises_in_planning, "no_such_column"),
        (loses_positions, "it ranked 0 of 1 positions"),
    ],
)
def test_one_that_fails_is_one_line_and_one_check_and_the_others_stand(
    sequences: tuple[DataFrame, DataFrame, DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: room.Baseline,
    cause: str,
) -> None:
    monkeypatch.setitem(room.BASELINES, "markov", failing)
    account = Account("evaluate")
    with caplog.at_level(logging.INFO, "llm_spark"):
        ranks = baseline_ranks(["markov", "popularity"], *sequences, 1, 1, account)
    assert {name: frame.collect()[0]["rank"] for name, frame in ranks.items()} == {"popularity": 1}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert line.startswith("the baseline markov is left out of the evaluation: ")
    assert cause in line
    assert "\n" not in line
    (check,) = account.checks
    assert (check.name, check.subject, check.severity) == ("baseline_failed", "markov", "warning")
    assert cause in check.detail


def test_without_training_rows_each_is_left_out_in_one_clear_line(
    sequences: tuple[DataFrame, DataFrame, DataFrame], caplog: pytest.LogCaptureFixture
) -> None:
    tests, training, vocabulary = sequences
    account = Account("evaluate")
    with caplog.at_level(logging.INFO, "llm_spark"):
        ranks = baseline_ranks(["popularity", "vsknn"], tests, training.limit(0), vocabulary, 1, 1, account)
    assert ranks == {}
    assert [check.subject for check in account.checks] == ["popularity", "vsknn"]
    assert all("the train split has no row to learn from" in check.detail for check in account.checks)
    assert len(caplog.records) == 1
