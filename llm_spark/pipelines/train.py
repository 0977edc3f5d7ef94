"""train: sequences -> a model artifact, models, training_metrics."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

import llm_spark
from llm_spark.config import Config
from llm_spark.errors import DataError, UsageError
from llm_spark.logs import log, progress
from llm_spark.model.artifact import load_artifact
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
    if warehouse.exists(MODELS) and not warehouse.read(MODELS).where(F.col("model_id") == model_id).isEmpty():
        account.nothing_to_do = f"model {model_id} was trained on this data with these settings already"
        return
    train_files = warehouse.data_files(SEQUENCES, versions[SEQUENCES.name], "split=train")
    if not train_files:
        raise DataError("the sequences table has no training rows: bring more events, or move sequences.train_until")
    work_dir = _work_dir(warehouse, config)
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
            provenance={"model_id": model_id, "table_versions": versions, "code_version": llm_spark.__version__},
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


def champion(warehouse: Warehouse) -> Any:
    """The row of the model that scores, its artifact found whole. UserError where there is no model yet, or its artifact is damaged."""
    row = warehouse.read(MODELS).where(F.col("alias") == "champion").orderBy(F.desc("created_at")).first()
    if row is None:
        raise DataError("no model is champion: run `llm-spark train`")
    load_artifact(warehouse.model_path(row["model_id"]))
    return row


def _model_id(versions: dict[str, int], settings: dict[str, Any]) -> str:
    identity = json.dumps([llm_spark.__version__, versions, settings], sort_keys=True)
    return "m" + hashlib.sha256(identity.encode()).hexdigest()[:12]


def _num_tokens(warehouse: Warehouse, table: Table, versions: dict[str, int]) -> int:
    largest = warehouse.read(table, versions[table.name]).agg(F.max("token")).first()
    if largest is None or largest[0] is None:
        raise DataError(f"the table {table.name} is empty: bring more events before sequences.train_until")
    return int(largest[0]) + 1


def _work_dir(warehouse: Warehouse, config: Config) -> str:
    """Where driver and ranks meet: as configured, else the warehouse where it is a folder, else this machine's temporary folder."""
    if config.train.work_dir is not None:
        return config.train.work_dir
    if warehouse.is_local:
        folder = Path(warehouse.root) / "staging"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)
    if not str(warehouse.spark.sparkContext.master).startswith("local"):
        raise UsageError("train.work_dir is not set: on a cluster give a folder that the driver and all executors see")
    return tempfile.gettempdir()


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
    """Make the model champion and archive the former one, in one commit."""
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
        "champion",
        "newest trained model",
    )
    models = warehouse.spark.createDataFrame([row], MODELS.schema)
    if warehouse.exists(MODELS):
        former = warehouse.read(MODELS).where((F.col("alias") == "champion") & (F.col("model_id") != model_id))
        archived = former.withColumns({"alias": F.lit("archived"), "reason": F.lit(f"followed by {model_id}")})
        models = models.unionByName(archived).localCheckpoint()
    warehouse.upsert(MODELS, models, "model_id")
