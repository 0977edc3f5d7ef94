"""Recommenders on a window of six positions: what is printed says what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pyspark.sql import SparkSession

from llm_spark.errors import DataError
from llm_spark.evaluation.baselines import BASELINES
from llm_spark.evaluation.estimates import MODEL
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.sums_kernel import MetricRules
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.evaluate import comparable_models, evaluation_lines, figures
from llm_spark.pipelines.evaluation_window import EvaluationWindow

SEQUENCES_DDL = "sequence_id string, user_id string, tokens array<int>, session_starts array<int>, event_times array<bigint>, first_target int"


@pytest.fixture
def window(spark: SparkSession) -> EvaluationWindow:
    """Training predicts 2 twice, 3 and 4 once; Anna does 2 2 4, Ben 3 2 3."""
    rows = [("s1", "anna", [5, 2, 2, 4], [0], [1, 2, 3, 4], 1), ("s2", "ben", [5, 3, 2, 3], [0], [1, 2, 3, 4], 1)]
    training = spark.createDataFrame([("s0", "carl", [5, 2, 3, 2, 4], [0], [0] * 5, 1)], SEQUENCES_DDL)
    vocabulary = spark.createDataFrame([(token, str(token)) for token in (2, 3, 4, 5)], "token int, item_id string")
    rules = MetricRules((1, 3), Items.counted(np.array([2, 3, 4, 5]), np.array([2, 1, 1, 0])), 40)
    return EvaluationWindow(1, spark.createDataFrame(rows, SEQUENCES_DDL), training, vocabulary, rules, 2, 6, 2, 1, 8)


def test_the_table_shows_every_recommender_and_what_the_model_has_more_of_it(window: EvaluationWindow) -> None:
    ranks = BASELINES["popularity"](window.test, window.training, window.vocabulary, 3)
    # It is as good as popularity, but for a rank better at Ben's 3, which ties with 4.
    measured = {MODEL: window.measured(ranks.replace(3, 2, "rank")), "popularity": window.measured(ranks)}
    lines = evaluation_lines(window, figures(measured))
    assert lines[0] == "6 test positions of 2 users, each ranked among all 4 items"
    assert lines[1].split() == ["recall@3", "mrr@3", "ndcg@3"]
    # Three times 2 at rank 1; three times 3 or 4 at rank 3, or at 2: (3 + 3/3) / 6 and (3 + 3/2) / 6.
    assert lines[2].startswith("model ")
    assert [word for word in lines[2].split() if "[" not in word and "]" not in word] == [
        "model",
        "1.000",
        "0.750",
        "0.815",
    ]
    assert lines[3].split()[0] == "popularity"
    assert "0.667 [" in lines[3]
    assert lines[4].startswith("model - popularity")
    assert "+0.083 [+0." in lines[4]
    assert lines[5] == "in brackets 95 % intervals over users; a difference whose interval holds 0 may be chance"


def test_of_a_single_user_there_are_figures_without_intervals_and_one_line_says_why(window: EvaluationWindow) -> None:
    alone = replace(window, test=window.test.where("user_id = 'anna'"), num_positions=3, num_users=1)
    ranks = BASELINES["popularity"](alone.test, alone.training, alone.vocabulary, 3)
    found = figures({MODEL: alone.measured(ranks)})
    assert {(each.ci_low, each.ci_high) for each in found[MODEL, None]} == {(None, None)}
    lines = evaluation_lines(alone, found)
    assert lines[0] == "3 test positions of 1 user, each ranked among all 4 items"
    assert lines[-1] == (
        "all positions are of one user: no interval can be given, for users are what an interval is about"
    )
    assert "[" not in "".join(lines)


def test_a_champion_that_cannot_be_tested_here_is_not_compared_with_and_the_evaluated_model_must_be_testable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def objects_to_the_old_one(_: object, model: str) -> None:
        if model == "old":
            raise DataError("the test sequences begin before what model old has seen")

    monkeypatch.setattr("llm_spark.pipelines.evaluate.require_testable", objects_to_the_old_one)
    account = Account("evaluate")
    assert comparable_models(None, {MODEL: "new", "champion": "old"}, account) == {MODEL: "new"}
    assert account.remarks == [
        "the champion cannot be compared with: the test sequences begin before what model old has seen"
    ]
    with pytest.raises(DataError, match="model old has seen"):
        comparable_models(None, {MODEL: "old", "champion": "new"}, account)
