"""Recommenders on a window of six positions: what is printed says what it is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config, GateConfig
from llm_spark.evaluation.baselines import BASELINES
from llm_spark.evaluation.estimates import MODEL, Estimate
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.outcomes import RFM
from llm_spark.evaluation.sums_kernel import MetricRules
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.evaluate import comparable_models, evaluate, evaluation_lines, figures
from llm_spark.pipelines.evaluation_window import EvaluationWindow
from llm_spark.pipelines.outcome_evaluation import outcome_lines

SEQUENCES_DDL = "sequence_id string, user_id string, tokens array<int>, session_starts array<int>, event_times array<bigint>, first_target int"


@pytest.fixture
def window(spark: SparkSession) -> EvaluationWindow:
    """Training predicts 2 twice, 3 and 4 once; Anna does 2 2 4, Ben 3 2 3."""
    rows = [("s1", "anna", [5, 2, 2, 4], [0], [1, 2, 3, 4], 1), ("s2", "ben", [5, 3, 2, 3], [0], [1, 2, 3, 4], 1)]
    training = spark.createDataFrame([("s0", "carl", [5, 2, 3, 2, 4], [0], [0] * 5, 1)], SEQUENCES_DDL)
    vocabulary = spark.createDataFrame([(token, str(token)) for token in (2, 3, 4, 5)], "token int, item_id string")
    rules = MetricRules((1, 3), Items.counted(np.array([2, 3, 4, 5]), np.array([2, 1, 1, 0])), 40)
    test = spark.createDataFrame(rows, SEQUENCES_DDL)
    return EvaluationWindow(1, test, training, vocabulary, rules, 2, 6, 2, 1, 8, test)


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


def test_a_champion_that_cannot_be_tested_here_is_not_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the test sequences begin before what model old has seen"
    monkeypatch.setattr(
        "llm_spark.pipelines.evaluate.why_it_cannot_be_compared", lambda _, model: why if model == "old" else ""
    )
    monkeypatch.setattr("llm_spark.pipelines.evaluate.loaded", lambda _, model: f"loaded {model}")
    account = Account("evaluate")
    assert comparable_models(None, {MODEL: "new", "champion": "old"}, account) == {}
    assert account.remarks == [f"the champion cannot be compared with: {why}"]
    assert comparable_models(None, {MODEL: "old", "champion": "new"}, account) == {"champion": "loaded new"}


def test_lines_of_outcomes_name_those_with_dots_and_leave_out_what_the_model_has_no_figure_of() -> None:
    mine, theirs, apart = (Estimate("all", "buys v1.5.auc", value, None, None, 9) for value in (0.75, 0.5, 0.25))
    of_one_label = Estimate("all", "returns.auc", 0.5, None, None, 9)
    found = {(MODEL, None): [mine], (RFM, None): [theirs, of_one_label], (MODEL, RFM): [apart]}
    assert outcome_lines(found) == [
        "buys v1.5: auc 0.750 over 9 moments; a regression on recency, frequency and monetary value 0.500; difference +0.250"
    ]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_stage_that_measured_already_begins_only_where_there_is_a_gate_to_decide(
    monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    here = "llm_spark.pipelines.evaluate"
    monkeypatch.setattr(f"{here}._measure", lambda _, __, account: setattr(account, "nothing_to_do", "it was measured"))
    monkeypatch.setattr(f"{here}.read_models", lambda _: SimpleNamespace(challenger="m2"))
    monkeypatch.setattr(f"{here}.decide_promotion", lambda *_: None)
    begun = []
    monkeypatch.setattr(Account, "begin", lambda _, what: begun.append(what))
    evaluate(None, Config(gate=GateConfig(enabled=enabled)), Account("evaluate"))
    assert begun == (["let the gate decide on the challenger that was measured"] if enabled else [])
