"""train: sequences -> a model artifact, models, training_metrics."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

import llm_spark
from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.logs import log, progress
from llm_spark.model.artifact import discard_artifact, load_artifact
from llm_spark.pipelines.account import Account
from llm_spark.schemas import EVENT_TYPES, MODELS, SEQUENCES, TRAINING_METRICS, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse
from llm_spark.training.launch import Progress, TrainingJob, TrainingResult
from llm_spark.training.launch import train as train_model


def train(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Train on the newest sequences; the model becomes champion, the one that scores, and the former champion is archived.

    A model is named by its data and its settings: the same again is nothing to do.
    """
    versions = {table.name: warehouse.version(table) for table in (SEQUENCES, VOCABULARY, EVENT_TYPES)}
    settings = {"model": asdict(config.model), "train": asdict(config.train)}
    model_id = _model_id(versions, settings)
    earlier = _registered(warehouse, model_id)
    if earlier is not None and _is_whole(warehouse, model_id):
        if earlier["alias"] == "champion":
            account.nothing_to_do = f"model {model_id} was trained on this data with these settings already"
        else:
            _promote(warehouse, warehouse.spark.createDataFrame([earlier], MODELS.schema))
            account.remarks.append(
                f"model {model_id}, trained earlier on this data with these settings, is champion again"
            )
            account.wrote(warehouse, MODELS)
        return
    discard_artifact(warehouse.model_path(model_id))
    train_files = warehouse.data_files(SEQUENCES, versions[SEQUENCES.name], "split=train")
    if not train_files:
        raise DataError("the sequences table has no training rows: bring more events, or move sequences.train_until")
    work_dir = _work_dir(warehouse)
    with progress("train") as bar:

        def show(state: Progress) -> None:
            left = f"{state.seconds_left:.0f} s left"
            bar.update(
                state.step, state.num_steps, f"loss {state.loss:.3f}, {state.tokens_per_second:,.0f} tokens/s, {left}"
            )

        job = TrainingJob(
            model_config=config.model,
            train_config=config.train,
            train_files=train_files,
            validation_files=warehouse.data_files(SEQUENCES, versions[SEQUENCES.name], "split=validation"),
            num_tokens=_num_tokens(warehouse, VOCABULARY, versions),
            num_event_types=_num_tokens(warehouse, EVENT_TYPES, versions),
            artifact_path=warehouse.model_path(model_id),
            work_dir=work_dir,
            provenance={
                "model_id": model_id,
                "table_versions": versions,
                "code_version": llm_spark.__version__,
                "splits": _splits(warehouse),
            },
            on_progress=show,
        )
        result = train_model(warehouse.spark, job)
    log.info("%s", result.model_summary)
    _write_metrics(warehouse, model_id, result)
    _register(warehouse, model_id, settings, versions, result)
    account.rows_in = {"training_files": len(train_files)}
    account.rows_out = {"steps": result.num_steps, "tokens": result.num_tokens, "parameters": result.num_parameters}
    account.read = versions
    account.wrote(warehouse, MODELS, TRAINING_METRICS)
    recall = (
        ""
        if result.best_recall is None
        else f", validation recall@20 {result.best_recall:.3f} at step {result.best_step}"
    )
    account.remarks.append(f"model {model_id} by {result.num_ranks} rank(s): loss {result.final_loss:.3f}{recall}")


@dataclass(frozen=True)
class Champion:
    """The model that scores, its artifact found whole."""

    model_id: str
    path: str
    num_tokens: int
    num_event_types: int
    validation_until: str
    """UTC end of what it was chosen on: nothing earlier may test it."""


def champion(warehouse: Warehouse) -> Champion:
    """UserError where there is no model yet, or its artifact is damaged."""
    row = warehouse.read(MODELS).where(F.col("alias") == "champion").orderBy(F.desc("created_at")).first()
    if row is None:
        raise DataError("no model is champion: run `llm-spark train`")
    path = warehouse.model_path(row["model_id"])
    loaded = load_artifact(path)
    splits = loaded.tables["splits"]
    return Champion(
        row["model_id"], path, loaded.model.num_tokens, loaded.model.num_event_types, splits["validation_until"]
    )


def _registered(warehouse: Warehouse, model_id: str) -> Any:
    return warehouse.read(MODELS).where(F.col("model_id") == model_id).first() if warehouse.exists(MODELS) else None


def _is_whole(warehouse: Warehouse, model_id: str) -> bool:
    try:
        load_artifact(warehouse.model_path(model_id))
    except UserError as error:
        log.warning("train: %s", error)
        return False
    return True


def _model_id(versions: dict[str, int], settings: dict[str, Any]) -> str:
    identity = json.dumps([llm_spark.__version__, versions, settings], sort_keys=True)
    return "m" + hashlib.sha256(identity.encode()).hexdigest()[:12]


def _splits(warehouse: Warehouse) -> dict[str, str]:
    origin = warehouse.origin(SEQUENCES)
    if origin is None:
        raise DataError("the sequences table was not written by `llm-spark sequences`: run it again")
    return {name: origin[name] for name in ("train_until", "validation_until")}


def _num_tokens(warehouse: Warehouse, table: Table, versions: dict[str, int]) -> int:
    largest = warehouse.read(table, versions[table.name]).agg(F.max("token")).first()
    if largest is None or largest[0] is None:
        raise DataError(f"the table {table.name} is empty: bring more events before sequences.train_until")
    return int(largest[0]) + 1


def _work_dir(warehouse: Warehouse) -> str:
    """Where driver and ranks leave each other their records: in the warehouse, which all of them see."""
    folder = f"{warehouse.root}/staging"
    if warehouse.is_local:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def _write_metrics(warehouse: Warehouse, model_id: str, result: TrainingResult) -> None:
    rows = [
        (model_id, metric.step, metric.name, metric.value, datetime.fromtimestamp(metric.at, UTC).replace(tzinfo=None))
        for metric in result.metrics
    ]
    warehouse.append(
        TRAINING_METRICS, warehouse.spark.createDataFrame(rows, TRAINING_METRICS.schema), f"metrics-{model_id}"
    )


def _register(
    warehouse: Warehouse, model_id: str, settings: dict[str, Any], versions: dict[str, int], result: TrainingResult
) -> None:
    metrics = {
        "final_loss": result.final_loss,
        "best_step": result.best_step,
        "validation_recall_at_20": result.best_recall,
    }
    row = (
        model_id,
        datetime.now(UTC).replace(tzinfo=None),
        json.dumps(settings),
        json.dumps(versions),
        json.dumps(metrics),
        f"models/{model_id}",
        None,
        None,
    )
    _promote(warehouse, warehouse.spark.createDataFrame([row], MODELS.schema))


def _promote(warehouse: Warehouse, model: DataFrame) -> None:
    """Make this model champion and archive the former one, in one commit."""
    promoted = model.withColumns({"alias": F.lit("champion"), "reason": F.lit("newest trained model")})
    (model_id,) = (row["model_id"] for row in model.collect())
    if warehouse.exists(MODELS):
        former = warehouse.read(MODELS).where((F.col("alias") == "champion") & (F.col("model_id") != model_id))
        archived = former.withColumns({"alias": F.lit("archived"), "reason": F.lit(f"followed by {model_id}")})
        promoted = promoted.unionByName(archived).localCheckpoint()
    warehouse.upsert(MODELS, promoted, "model_id")
