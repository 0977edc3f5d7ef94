"""A baseline that fails is named and left out; the others are measured all the same."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from llm_spark.evaluation import baselines as room
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.sums_kernel import MetricRules
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.baselines import measured_baselines
from llm_spark.pipelines.evaluation_window import EvaluationWindow

RANKS = "sequence_id string, user_id string, position int, session_position int, token int, rank int, top array<int>"
ROWS = "sequence_id string, user_id string, tokens array<int>, session_starts array<int>, event_times array<bigint>, first_target int"


def raises_in_a_worker(tests: DataFrame, training: DataFrame, vocabulary: DataFrame, list_length: int) -> DataFrame:
    def kernel(batches):
        raise ValueError("the index is not whole")
        yield from batches

    return tests.mapInArrow(kernel, RANKS)


def raises_in_planning(tests: DataFrame, training: DataFrame, vocabulary: DataFrame, list_length: int) -> DataFrame:
    return tests.select("no_such_column")


def loses_positions(tests: DataFrame, training: DataFrame, vocabulary: DataFrame, list_length: int) -> DataFrame:
    return tests.sparkSession.createDataFrame([], RANKS)


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command that ran before in this process has set up."""
    monkeypatch.setattr(logging.getLogger("llm_spark"), "propagate", True)


@pytest.fixture
def window(spark: SparkSession) -> EvaluationWindow:
    tests = spark.createDataFrame([("t", "t", [2, 3], [0], [5, 6], 1)], ROWS)
    training = spark.createDataFrame([("a", "a", [2, 3], [0], [1, 2], 1)], ROWS)
    vocabulary = spark.createDataFrame([(2, "a"), (3, "b")], "token int, item_id string")
    rules = MetricRules((1,), Items.counted(np.array([2, 3]), np.array([0, 1])), num_replicates=40)
    return EvaluationWindow(1, tests, training, vocabulary, rules, 1, 1, 1, 2, 8, tests)


@pytest.mark.parametrize(
    ("failing", "cause"),
    [
        (raises_in_a_worker, "ValueError: the index is not whole"),
        (raises_in_planning, "no_such_column"),
        (loses_positions, "it ranks 0 positions of the 1 to predict"),
    ],
)
def test_one_that_fails_is_one_line_and_one_check_and_the_others_stand(
    window: EvaluationWindow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: room.Baseline,
    cause: str,
) -> None:
    monkeypatch.setitem(room.BASELINES, "markov", failing)
    account = Account("evaluate")
    with caplog.at_level(logging.WARNING, "llm_spark"):
        measured = measured_baselines(window, ["markov", "popularity"], account)
    (accuracy,) = [e.value for e in measured["popularity"].estimates() if (e.slice, e.name) == ("all", "accuracy")]
    assert (list(measured), accuracy) == (["popularity"], 1.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "llm_spark"]
    assert line.startswith("the baseline markov is left out of the evaluation: ")
    assert cause in line
    assert "\n" not in line
    (check,) = account.checks
    assert (check.name, check.subject, check.severity) == ("baseline_failed", "markov", "warning")
    assert cause in check.detail


def test_without_training_rows_each_is_left_out_in_one_clear_line(
    window: EvaluationWindow, caplog: pytest.LogCaptureFixture
) -> None:
    untaught = replace(window, training=window.training.limit(0))
    account = Account("evaluate")
    with caplog.at_level(logging.WARNING, "llm_spark"):
        assert measured_baselines(untaught, ["popularity", "vsknn"], account) == {}
    assert [check.subject for check in account.checks] == ["popularity", "vsknn"]
    assert all("the train split has no row to learn from" in check.detail for check in account.checks)
    assert len(caplog.records) == 1
