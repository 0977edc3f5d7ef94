"""train: sequences -> a model artifact, models, training_metrics."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import functions as F

import llm_spark
from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.logs import log, progress
from llm_spark.model.artifact import discard_artifact
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.initial_embedding import initial_embedding
from llm_spark.pipelines.registry import promote, registered
from llm_spark.reader import ReaderError, Snapshot
from llm_spark.schemas import EVENT_TYPES, MODELS, SEQUENCES, TRAINING_METRICS, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse
from llm_spark.training.launch import Progress, TrainingJob, TrainingResult
from llm_spark.training.launch import train as train_model


def train(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Train on the newest sequences; the model becomes champion, the one that scores, and the former champion is archived.

    A model is named by its data and its settings: the same again is nothing to do, also where the data lie in other files by now.
    """
    inputs = (SEQUENCES, VOCABULARY, EVENT_TYPES)
    versions = {table.name: warehouse.version(table) for table in inputs}
    data_versions = {table.name: warehouse.data_version(table, versions[table.name]) for table in inputs}
    settings = {"model": asdict(config.model), "train": asdict(config.train)}
    model_id = _model_id(data_versions, settings)
    earlier = registered(warehouse, model_id)
    if earlier is not None and earlier["alias"] == "champion":
        account.nothing_to_do = f"model {model_id} was trained on this data with these settings already"
        return
    if earlier is not None:
        promote(warehouse, earlier)
        account.remarks.append(f"model {model_id}, trained earlier on this data with these settings, is champion again")
        account.wrote(warehouse, MODELS)
        return
    discard_artifact(warehouse.model_path(model_id))
    training = _snapshot(warehouse, versions, "train")
    if not training.files:
        raise DataError("the sequences table has no training rows: bring more events, or move sequences.train_until")
    begin_at = initial_embedding(warehouse, versions[SEQUENCES.name], config.model, config.train.seed, model_id)
    with begin_at as item_vectors, progress("train") as bar:

        def show(state: Progress) -> None:
            left = f"{state.seconds_left:.0f} s left"
            bar.update(
                state.step, state.num_steps, f"loss {state.loss:.3f}, {state.tokens_per_second:,.0f} tokens/s, {left}"
            )

        job = TrainingJob(
            model_config=config.model,
            train_config=config.train,
            training=training,
            validation=_snapshot(warehouse, versions, "validation"),
            num_tokens=_num_tokens(warehouse, VOCABULARY, versions),
            num_event_types=_num_tokens(warehouse, EVENT_TYPES, versions),
            artifact_path=warehouse.model_path(model_id),
            work_dir=f"{warehouse.root}/staging",
            provenance={
                "model_id": model_id,
                "table_versions": versions,
                "data_versions": data_versions,
                "code_version": llm_spark.__version__,
                "splits": _splits(warehouse),
                "values": (warehouse.origin(SEQUENCES) or {}).get("values"),
            },
            initial_embedding=item_vectors,
            on_progress=show,
        )
        result = train_model(warehouse.spark, job)
    log.info("%s", result.model_summary)
    _write_metrics(warehouse, model_id, result)
    _register(warehouse, model_id, settings, versions, result)
    account.rows_in = {"training_files": len(training.files)}
    account.rows_out = {"steps": result.num_steps, "tokens": result.num_tokens, "parameters": result.num_parameters}
    account.read = versions
    account.wrote(warehouse, MODELS, TRAINING_METRICS)
    recall = (
        ""
        if result.best_recall is None
        else f", validation recall@20 {result.best_recall:.3f} at step {result.best_step}"
    )
    account.remarks.append(f"model {model_id} by {result.num_ranks} rank(s): loss {result.final_loss:.3f}{recall}")


def _model_id(versions: dict[str, int], settings: dict[str, Any]) -> str:
    identity = json.dumps([llm_spark.__version__, versions, settings], sort_keys=True)
    return "m" + hashlib.sha256(identity.encode()).hexdigest()[:12]


def _splits(warehouse: Warehouse) -> dict[str, str | None]:
    origin = warehouse.origin(SEQUENCES)
    if origin is None or "split" not in origin:
        raise DataError("the sequences table was not written by this version of `llm-spark sequences`: run it again")
    return {name: origin[name] for name in ("split", "train_until", "validation_until")}


def _num_tokens(warehouse: Warehouse, table: Table, versions: dict[str, int]) -> int:
    largest = warehouse.read(table, versions[table.name]).agg(F.max("token")).first()
    if largest is None or largest[0] is None:
        raise DataError(f"the table {table.name} is empty: bring more events before sequences.train_until")
    return int(largest[0]) + 1


def _snapshot(warehouse: Warehouse, versions: dict[str, int], split: str) -> Snapshot:
    """The files of one split at the version that is trained on, from Delta's log."""
    try:
        return Snapshot.of_delta(warehouse.path(SEQUENCES), versions[SEQUENCES.name], {"split": split})
    except ReaderError as error:
        raise UserError(str(error)) from error


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
    promote(
        warehouse,
        {
            "model_id": model_id,
            "created_at": datetime.now(UTC).replace(tzinfo=None),
            "config": json.dumps(settings),
            "table_versions": json.dumps(versions),
            "metrics": json.dumps(metrics),
            "artifact": f"models/{model_id}",
        },
    )
