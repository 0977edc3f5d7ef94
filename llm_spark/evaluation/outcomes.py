"""How well outcomes are foretold, beside a regression on recency, frequency and monetary value: one pass in Spark, of which only metrics
reach the driver.

A moments frame has the columns of scoring's LABELLED_MOMENTS_DDL.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import OutcomeConfig
from llm_spark.evaluation.bootstrap import percentile_interval
from llm_spark.evaluation.estimates import MODEL, Estimate
from llm_spark.evaluation.outcome_kernel import HISTOGRAMS_DDL, METRICS_DDL, merged_metrics, partial_histograms

RFM = "rfm_regression"
NUM_REPLICATES = 200
"""Fewer than of ranking metrics, for here each holds whole histograms. An end of an interval is off by about a tenth of half its width."""
Floats = NDArray[np.float64]
_RFM_COLUMNS = ("recency", "frequency", "monetary")
_RIDGE = 1e-4
_SURE_LOGIT = 16.0
"""What a regression says where all labels that it was taught are alike."""


def rfm_predictions(training: DataFrame, asked: DataFrame, outcome: OutcomeConfig) -> DataFrame:
    """The moments of this outcome in `asked`, with the prediction of a regression on log(1 + recency, frequency, monetary value), logistic or
    linear, that is fitted on those of `training`: what a marketer would do without this model.

    ValueError where training has no moment of it.
    """
    numbers = VectorAssembler(inputCols=list(_RFM_COLUMNS), outputCol="numbers")
    taught, unanswered = (
        numbers.transform(moments.where(F.col("outcome") == outcome.name).drop("prediction"))
        for moments in (training, asked)
    )
    bounds = taught.agg(F.min("label").alias("low"), F.max("label").alias("high")).first()
    if bounds is None or bounds["low"] is None:
        raise ValueError(f"training has no moment with a label of '{outcome.name}'")
    if outcome.kind == "amount":
        linear = LinearRegression(featuresCol="numbers", labelCol="label", regParam=_RIDGE).fit(taught)
        told = linear.transform(unanswered)
    elif bounds["low"] == bounds["high"]:
        told = unanswered.withColumn("prediction", F.lit(_SURE_LOGIT if bounds["low"] > 0 else -_SURE_LOGIT))
    else:
        logistic = LogisticRegression(featuresCol="numbers", labelCol="label", regParam=_RIDGE).fit(taught)
        logits = vector_to_array(F.col("rawPrediction"))
        told = logistic.setPredictionCol("class").transform(unanswered).withColumn("prediction", logits[1])
    return told.select(*asked.columns)


def outcome_metrics(moments: DataFrame, outcomes: Sequence[OutcomeConfig]) -> DataFrame:
    """METRICS_DDL for every outcome and recommender; `moments` has also the column `recommender`."""
    amounts = frozenset(outcome.name for outcome in outcomes if outcome.kind == "amount")
    told = moments.select("outcome", "recommender", F.xxhash64("user_id").alias("user_hash"), "label", "prediction")
    partial = told.mapInArrow(
        functools.partial(partial_histograms, amounts=amounts, num_replicates=NUM_REPLICATES), HISTOGRAMS_DDL
    )
    whole = partial.repartition("outcome", "recommender", "replicate")
    return whole.mapInArrow(functools.partial(merged_metrics, amounts=amounts), METRICS_DDL)


def outcome_estimates(metrics: DataFrame) -> dict[tuple[str, str | None], list[Estimate]]:
    """(recommender, against) -> figures with their intervals: each recommender's own, and the model's less every other's, paired."""
    value_of: dict[tuple[str, str, int, str], Floats] = {}
    told: dict[tuple[str, str], tuple[bool, int]] = {}
    for row in metrics.toArrow().to_pylist():
        key = (row["recommender"], row["outcome"], row["tenth"], row["name"])
        value_of.setdefault(key, np.full(1 + NUM_REPLICATES, np.nan))[row["replicate"]] = row["value"]
        if row["replicate"] == 0:
            told[row["recommender"], row["outcome"]] = row["only_user"] is None, row["moments"]
    others = sorted({recommender for recommender, _ in told} - {MODEL})
    found: dict[tuple[str, str | None], list[Estimate]] = {}
    for (recommender, outcome, tenth, name), value_R in sorted(value_of.items()):
        if np.isnan(value_R[0]):
            continue
        place = f"outcome_decile_{tenth}" if tenth else "all"
        compared: list[tuple[str | None, Floats]] = [(None, value_R)]
        for other in others if recommender == MODEL else []:
            if (theirs_R := value_of.get((other, outcome, tenth, name))) is not None:
                compared.append((other, value_R - theirs_R))
        for against, figure_R in compared:
            estimate = _estimate(figure_R, place, f"{outcome}.{name}", *told[recommender, outcome])
            found.setdefault((recommender, against), []).append(estimate)
    return found


def _estimate(value_R: Floats, place: str, name: str, has_interval: bool, num_moments: int) -> Estimate:
    low, high = percentile_interval(value_R[1:]) if has_interval else (None, None)
    return Estimate(place, name, float(value_R[0]), low, high, num_moments)
