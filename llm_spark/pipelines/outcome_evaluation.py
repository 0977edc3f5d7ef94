"""How well the model foretells its outcomes on the test split, beside a regression on recency, frequency and monetary value."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.evaluation.estimates import MODEL, Estimate
from llm_spark.evaluation.outcomes import RFM, outcome_estimates, outcome_metrics, rfm_predictions
from llm_spark.logs import log
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.baselines import cause
from llm_spark.pipelines.registry.serving import Champion
from llm_spark.scoring import LABELLED_MOMENTS_DDL, labelled_moments

Figures = dict[tuple[str, str | None], list[Estimate]]


def outcome_figures(
    model: Champion,
    others: Mapping[str, Champion],
    training: DataFrame,
    test: DataFrame,
    batch_rows: int,
    account: Account,
) -> tuple[Figures, list[str]]:
    """(recommender, against) -> figures of every outcome of this model, from all moments of the test rows whose outcome is known by now; beside
    it a regression, and the `others`, by their names, which must foretell the same outcomes. And the outcomes whose regression failed."""
    outcomes = model.config.outcomes
    asked = _moments(test, model, batch_rows, foretold=True).persist(StorageLevel.MEMORY_AND_DISK)
    taught = _moments(training, model, batch_rows, foretold=False).persist(StorageLevel.MEMORY_AND_DISK)
    told = [asked.withColumn("recommender", F.lit(MODEL))]
    for name, other in others.items():
        told.append(_moments(test, other, batch_rows, foretold=True).withColumn("recommender", F.lit(name)))
    failed = []
    for outcome in outcomes:
        try:
            by_regression = rfm_predictions(taught, asked, outcome)
            # What fails of one row fails here, and not in the figures of all.
            by_regression.agg(F.sum("prediction")).collect()
            told.append(by_regression.withColumn("recommender", F.lit(RFM)))
        except ValueError as error:
            account.remarks.append(f"'{outcome.name}' is not held against a regression: {error}")
        # Whatever it is: a model must not wait for what it is only compared with.
        except Exception as error:
            log.debug("regression of %s", outcome.name, exc_info=True)
            failed.append(outcome.name)
            account.remarks.append(f"'{outcome.name}' is not held against a regression, which failed: {cause(error)}")
    found = outcome_estimates(outcome_metrics(functools.reduce(DataFrame.unionByName, told), outcomes))
    asked.unpersist()
    taught.unpersist()
    judged = {e.name.rpartition(".")[0] for estimates in found.values() for e in estimates}
    for outcome in outcomes:
        if outcome.name not in judged:
            account.remarks.append(
                f"'{outcome.name}' is not judged: no window of {outcome.within_days:g} days after a test event is closed yet; "
                "move sequences.validation_until back, or wait"
            )
    return found, failed


def _moments(sequences: DataFrame, model: Champion, batch_rows: int, foretold: bool) -> DataFrame:
    """LABELLED_MOMENTS_DDL of these rows."""
    kernel = functools.partial(labelled_moments, artifact_path=model.path, batch_rows=batch_rows, foretold=foretold)
    columns = sequences.select("user_id", *model.config.history_columns, *model.config.moment_columns)
    num_tasks = sequences.sparkSession.sparkContext.defaultParallelism
    return columns.repartition(num_tasks, "user_id").mapInArrow(kernel, LABELLED_MOMENTS_DDL)


def outcome_lines(found: Mapping[tuple[str, str | None], Sequence[Estimate]]) -> list[str]:
    """One line an outcome and measure: the model, the regression, and how far they are apart."""
    shown = ("auc", "average_precision", "brier", "squared_error_log")
    by_name = {(key, e.name): e for key, estimates in found.items() for e in estimates if e.slice == "all"}
    lines = []
    for name in sorted({name for _, name in by_name if name.split(".")[-1] in shown}):
        mine = by_name.get(((MODEL, None), name))
        if mine is None:
            continue
        outcome, _, measure = name.rpartition(".")
        line = f"{outcome}: {measure} {_told(mine)} over {mine.num_examples:,} moments".replace("_", " ")
        if ((RFM, None), name) in by_name:
            line += f"; a regression on recency, frequency and monetary value {_told(by_name[(RFM, None), name])}"
            line += f"; difference {_told(by_name[(MODEL, RFM), name], '+')}"
        lines.append(line)
    return lines


def _told(estimate: Estimate, sign: str = "") -> str:
    bounds = "" if estimate.ci_low is None else f" [{estimate.ci_low:{sign}.3f}, {estimate.ci_high:{sign}.3f}]"
    return f"{estimate.value:{sign}.3f}{bounds}"
