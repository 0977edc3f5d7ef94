"""Outcome metrics through Spark: the regression that they are held against, and the figures."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from llm_spark.config import OutcomeConfig
from llm_spark.evaluation.estimates import MODEL
from llm_spark.evaluation.outcomes import RFM, outcome_estimates, outcome_metrics, rfm_predictions

RETURNS, SPEND = OutcomeConfig("returns"), OutcomeConfig("spend", kind="amount")
DDL = "user_id string, outcome string, label double, prediction double, frequency float, tenure float, monetary float, recency float"


def drawn(
    spark: SparkSession, outcome: OutcomeConfig, num_moments: int, seed: int
) -> tuple[DataFrame, np.ndarray, np.ndarray]:
    """Moments whose outcome follows recency, frequency and monetary value; the numbers [L, 3] and the labels."""
    random = np.random.default_rng(seed)
    numbers = random.gamma(2.0, 1.0, (num_moments, 3)).astype(np.float32)
    said = numbers @ np.array([-1.0, 0.8, 0.3])
    came_about = (random.random(num_moments) < 1 / (1 + np.exp(-said))).astype(float)
    label = np.maximum(said + 3, 0) if outcome.kind == "amount" else came_about
    rows = [
        (f"u{i % 40}", outcome.name, float(y), float(random.normal()), float(f), 0.0, float(m), float(r))
        for i, (y, (r, f, m)) in enumerate(zip(label, numbers, strict=True))
    ]
    return spark.createDataFrame(rows, DDL), numbers, label


def test_the_regression_says_what_scikit_learn_says(spark: SparkSession) -> None:
    training, numbers, label = drawn(spark, RETURNS, 400, seed=1)
    asked, asked_numbers, _ = drawn(spark, RETURNS, 50, seed=2)
    told = rfm_predictions(training, asked, RETURNS)
    assert told.columns == asked.columns
    expected = LogisticRegression(C=np.inf).fit(numbers, label).decision_function(asked_numbers)
    np.testing.assert_allclose([row["prediction"] for row in told.collect()], expected, atol=0.05)


def test_the_linear_regression_of_an_amount_says_what_least_squares_say(spark: SparkSession) -> None:
    training, numbers, label = drawn(spark, SPEND, 400, seed=3)
    told = rfm_predictions(training, training, SPEND).collect()
    design = np.column_stack([numbers, np.ones(len(numbers))])
    expected = design @ np.linalg.lstsq(design, label, rcond=None)[0]
    np.testing.assert_allclose([row["prediction"] for row in told], expected, atol=0.02)


def test_where_training_knows_one_label_only_that_one_is_foretold(spark: SparkSession) -> None:
    training = drawn(spark, RETURNS, 20, seed=4)[0].withColumn("label", F.lit(0.0))
    told = rfm_predictions(training, training, RETURNS).select("prediction").distinct().collect()
    assert len(told) == 1
    assert told[0]["prediction"] < -10
    with pytest.raises(ValueError, match="training has no moment with a label of 'spend'"):
        rfm_predictions(training, training, SPEND)


def test_figures_have_intervals_and_differences_are_paired(spark: SparkSession) -> None:
    training = drawn(spark, RETURNS, 400, seed=5)[0]
    asked, _, label = drawn(spark, RETURNS, 600, seed=6)
    by_rule = rfm_predictions(training, asked, RETURNS)
    both = asked.withColumn("recommender", F.lit(MODEL)).unionByName(by_rule.withColumn("recommender", F.lit(RFM)))
    found = outcome_estimates(outcome_metrics(both, [RETURNS]))
    figures = {(key, e.slice, e.name): e for key, estimates in found.items() for e in estimates}
    mine, theirs, apart = (figures[key, "all", "returns.auc"] for key in ((MODEL, None), (RFM, None), (MODEL, RFM)))
    random_scores = [row["prediction"] for row in asked.collect()]
    assert mine.value == pytest.approx(roc_auc_score(label, random_scores), abs=2e-3)
    assert apart.value == pytest.approx(mine.value - theirs.value)
    assert mine.num_examples == 600
    assert mine.ci_low < mine.value < mine.ci_high
    # Scores drawn at random are worse than the rule that made the labels, and the pairs of users say so.
    assert apart.ci_high < 0
    assert figures[(RFM, None), "outcome_decile_1", "returns.lift"].value > 1.2
    assert figures[(RFM, None), "outcome_decile_10", "returns.gain"].value == pytest.approx(1.0)


def test_the_model_is_compared_with_every_other_that_foretells_the_same(spark: SparkSession) -> None:
    moments = drawn(spark, RETURNS, 300, seed=8)[0]
    turned = moments.withColumn("prediction", -F.col("prediction"))
    told = [moments.withColumn("recommender", F.lit(MODEL)), turned.withColumn("recommender", F.lit("champion"))]
    found = outcome_estimates(outcome_metrics(told[0].unionByName(told[1]), [RETURNS]))
    assert set(found) == {(MODEL, None), ("champion", None), (MODEL, "champion")}
    auc = {key: next(e.value for e in estimates if e.name == "returns.auc") for key, estimates in found.items()}
    # Turned round, what was likelier is less likely.
    assert auc["champion", None] == pytest.approx(1 - auc[MODEL, None], abs=2e-3)
    assert auc[MODEL, "champion"] == pytest.approx(auc[MODEL, None] - auc["champion", None])


def test_one_user_alone_has_no_interval(spark: SparkSession) -> None:
    moments = drawn(spark, RETURNS, 30, seed=7)[0].withColumns({"user_id": F.lit("u"), "recommender": F.lit(MODEL)})
    (estimates,) = outcome_estimates(outcome_metrics(moments, [RETURNS])).values()
    assert {(e.ci_low, e.ci_high) for e in estimates} == {(None, None)}
