"""What a report reads: each query is aggregated or cut in Spark, so that what reaches the driver has a bound whatever the tables hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.evaluation.estimates import MODEL
from llm_spark.pipelines import STAGES
from llm_spark.pipelines.account import FAILED
from llm_spark.pipelines.registry.aliases import ALIASES, CHAMPION, read_models
from llm_spark.report import Check, Estimate, Measurement, Model, Prediction, Reason, StageRun, User
from llm_spark.schemas import DATA_QUALITY, EVALUATION, PREDICTIONS, RUNS, TRAINING_METRICS, Table
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.offers import of_the_model

REPORT, NIGHTLY = "report", "nightly"
MAX_STAGES = 50
MAX_CHECKS = 400
MAX_DRIFT_ROWS = 1_200
"""Some thirty nights of some forty measures."""
MAX_ESTIMATES = 6_000
MAX_MODELS = 20
MAX_RANK = 5
"""Of an example user's predictions."""
POINTS_OF_A_CURVE = 240
MAX_CURVES = 16


def newest_runs(warehouse: Warehouse, as_of: str | None = None) -> list[StageRun]:
    """The newest run of each stage (of those that worked as of that day or an earlier one), in the order of the stages. One that only left
    checks had found a fault and refused to go on. Runs of the report itself are none of the night's, nor is the night's own: with them each
    page would differ from the one before."""
    runs = _rows(warehouse, RUNS).where(~F.col("stage").isin(REPORT, NIGHTLY))
    if as_of is not None:
        runs = runs.where(F.col("as_of_date").isNull() | (F.col("as_of_date") <= F.lit(date.fromisoformat(as_of))))
    newest = _newest("started_at", "run_id", "seconds", "account", "outcome", "reason")
    done = runs.groupBy("stage").agg(newest).limit(MAX_STAGES).collect()
    checks = _rows(warehouse, DATA_QUALITY).where(F.col("stage") != NIGHTLY)
    checked = checks.groupBy("stage").agg(_newest("measured_at", "run_id"))
    found = {row["stage"]: _stage_run(row["stage"], row["newest"]) for row in done}
    for row in checked.limit(MAX_STAGES).collect():
        stage, newest = row["stage"], row["newest"]
        if stage not in found or newest["measured_at"] > found[stage].started_at:
            found[stage] = StageRun(stage, newest["run_id"], newest["measured_at"], None)
    order = list(STAGES)
    return sorted(
        found.values(), key=lambda run: (order.index(run.stage) if run.stage in order else len(order), run.stage)
    )


def _newest(time: str, *columns: str) -> Column:
    return F.max_by(F.struct(time, *columns), F.struct(time, "run_id")).alias("newest")


def _stage_run(stage: str, run: Row) -> StageRun:
    try:
        account: dict[str, Any] = json.loads(run["account"] or "{}")
    except ValueError:
        account = {}
    told = {name: account.get(name) or {} for name in ("rows_in", "rows_out", "rejected")}
    remarks = [*(account.get("remarks") or ()), *([run["reason"]] if run["reason"] else [])]
    seconds = None if run["outcome"] == FAILED else run["seconds"] or 0.0
    return StageRun(stage, run["run_id"], run["started_at"], seconds, **told, remarks=remarks)


def checks_of(warehouse: Warehouse, run_ids: Sequence[str]) -> tuple[list[Check], int]:
    """The checks of these runs, the gravest first and drift before others, and how many more there are than a page can hold."""
    rows = _rows(warehouse, DATA_QUALITY).where(F.col("run_id").isin(list(run_ids)))
    gravity = F.when(F.col("severity") == "error", 2).when(F.col("severity") == "warning", 1).otherwise(0)
    of_drift = F.col("stage") == "drift"
    ordered = rows.orderBy(gravity.desc(), of_drift.desc(), "stage", "name", "subject", "detail", "value")
    kept = ordered.limit(MAX_CHECKS).collect()
    return list(map(_check, kept)), rows.count() - len(kept) if len(kept) == MAX_CHECKS else 0


def drift_history(warehouse: Warehouse) -> list[Check]:
    """What the stage drift measured in its newest runs, the oldest first."""
    measured = _rows(warehouse, DATA_QUALITY).where((F.col("stage") == "drift") & F.col("value").isNotNull())
    newest = measured.orderBy(F.desc("measured_at"), "run_id", "name", "subject").limit(MAX_DRIFT_ROWS)
    return [_check(row) for row in reversed(newest.collect())]


def _check(row: Row) -> Check:
    names = ("stage", "name", "subject", "value", "limit", "severity", "detail", "measured_at")
    return Check(**{name: row[name] for name in names})


def evaluated_ids(warehouse: Warehouse) -> tuple[str | None, str | None]:
    """The model that was evaluated last, and the champion beside which it was; None where there was none."""
    noted = (warehouse.origin(EVALUATION) or {}).get("models", {})
    if MODEL in noted:
        return noted[MODEL], noted.get(CHAMPION)
    order = F.struct("sequences_version", "model_id")
    row = _rows(warehouse, EVALUATION).agg(F.max_by("model_id", order).alias("model_id")).first()
    return (row["model_id"] if row is not None else None), None


def estimates_of(warehouse: Warehouse, model_id: str | None, metric: str) -> list[Estimate]:
    """Figures over all positions, calibration and outcomes; of slices the deciding metric and recall alone."""
    place, name = F.col("slice"), F.col("name")
    of_slice = F.col("against").isNull() & ((name == metric) | name.startswith("recall@"))
    wanted = (place == "all") | place.startswith("confidence_") | place.startswith("outcome_decile_") | of_slice
    own = (F.col("model_id") == model_id) & F.col("value").isNotNull() & ~F.isnan("value")
    rows = _rows(warehouse, EVALUATION).where(own & wanted)
    ordered = rows.orderBy("recommender", "against", "slice", "name").limit(MAX_ESTIMATES)
    columns = ("recommender", "against", "slice", "name", "value", "ci_low", "ci_high", "num_examples")
    return [Estimate(*(row[column] for column in columns)) for row in ordered.collect()]


def measurements_of(warehouse: Warehouse, model_id: str | None) -> list[Measurement]:
    """The training curves, each in at most so many points: the means of steps that follow each other."""
    rows = _rows(warehouse, TRAINING_METRICS).where((F.col("model_id") == model_id) & ~F.isnan("value"))
    last = rows.agg(F.max("step").alias("step")).first()
    if last is None or last["step"] is None:
        return []
    part = F.floor(F.col("step") * POINTS_OF_A_CURVE / F.lit(last["step"] + 1))
    means = rows.groupBy("name", part.alias("part")).agg(F.avg("step").alias("step"), F.avg("value").alias("value"))
    kept = means.orderBy("name", "step").limit(POINTS_OF_A_CURVE * MAX_CURVES).collect()
    return [Measurement(round(row["step"]), row["name"], row["value"]) for row in kept]


def registered_models(warehouse: Warehouse) -> tuple[list[Model], int]:
    """Champion, challenger, then the newest others; and how many there are."""
    rows = read_models(warehouse).rows
    order = {alias: place for place, alias in enumerate(ALIASES)}
    newest_first = sorted(rows, key=lambda model: (model.since, model.model_id), reverse=True)
    by_alias = sorted(newest_first, key=lambda model: order.get(model.alias, len(order)))
    models = [
        Model(
            model_id=model.model_id,
            alias=model.alias,
            since=model.changed_at or model.created_at,
            trained_at=model.created_at,
            reason=model.reason or "",
            code_version=model.code_version or "",
            has_artifact=model.artifact is not None,
        )
        for model in by_alias[:MAX_MODELS]
    ]
    return models, len(rows)


def example_users(warehouse: Warehouse, num_users: int, as_of: str | None = None) -> list[User]:
    """So many users of the newest day (up to `as_of`) with what is foretold of them; those whose predictions have reasons first, by a hash of
    their ids."""
    if not num_users:
        return []
    predictions = of_the_model(_rows(warehouse, PREDICTIONS))
    if as_of is not None:
        predictions = predictions.where(F.col("as_of_date") <= F.lit(date.fromisoformat(as_of)))
    newest = predictions.agg(F.max("as_of_date").alias("day")).first()
    if newest is None or newest["day"] is None:
        return []
    of_day = predictions.where(F.col("as_of_date") == F.lit(newest["day"]))
    has_reasons = F.col("reasons").isNotNull() & (F.size("reasons") > 0)
    likeliest = of_day.where(F.col("rank") == 1).select("user_id", has_reasons.alias("has_reasons"))
    drawn = likeliest.orderBy(F.desc("has_reasons"), F.xxhash64("user_id"), "user_id").limit(num_users).collect()
    ids = [row["user_id"] for row in drawn]
    shown = of_day.where(F.col("user_id").isin(ids) & (F.col("rank") <= MAX_RANK)).orderBy("user_id", "rank").collect()
    return [
        User(user_id, newest["day"], rows[0]["model_id"], [_prediction(row) for row in rows])
        for user_id in ids
        if (rows := [row for row in shown if row["user_id"] == user_id])
    ]


def _prediction(row: Row) -> Prediction:
    reasons = [Reason(reason["item_id"], reason["weight"]) for reason in row["reasons"] or ()]
    return Prediction(row["rank"], row["item_id"], row["probability"], reasons, row["memory_weight"])


def _rows(warehouse: Warehouse, table: Table) -> DataFrame:
    """The table, empty where it is missing; one that an earlier version made has the columns that it lacks as nulls."""
    rows = warehouse.read_or_empty(table)
    lacking = {
        entry.name: F.lit(None).cast(entry.dataType) for entry in table.schema.fields if entry.name not in rows.columns
    }
    return rows.withColumns(lacking) if lacking else rows
