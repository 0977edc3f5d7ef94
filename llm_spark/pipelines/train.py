"""train: sequences -> a model artifact, models, training_metrics."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import functions as F

import llm_spark
from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.logs import log, progress
from llm_spark.model.artifact import discard_artifact
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.certificate import require_certificate
from llm_spark.pipelines.code_version import code_version
from llm_spark.pipelines.features import require_features
from llm_spark.pipelines.initial_embedding import initial_embedding
from llm_spark.pipelines.outcomes import require_labels
from llm_spark.pipelines.parent import Parent, choose_parent
from llm_spark.pipelines.registry.aliases import (
    CHALLENGER,
    CHAMPION,
    GATE,
    TRAIN,
    Model,
    Models,
    as_challenger,
    as_champion,
    change,
    read_models,
)
from llm_spark.pipelines.registry.serving import is_whole
from llm_spark.pipelines.registry.token_tables import SEQUENCES_ID, outlived_by_a_model, sequences_id, token_table_ids
from llm_spark.pipelines.training_folder import TrainingFolder, is_readable
from llm_spark.reader import ReaderError, Snapshot
from llm_spark.schemas import EVENT_TYPES, MODELS, SEQUENCES, TRAINING_METRICS, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse
from llm_spark.training.launch import Progress, TrainingJob, TrainingResult
from llm_spark.training.launch import train as train_model
from llm_spark.training.tracking import require_package


def train(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Train on the newest sequences; the model becomes challenger, for the gate at the end of evaluate, or without a gate champion at once.

    A model is named by its data, its settings and the model it began with: the same again is nothing to do, also where the data lie in
    other files by now, or where it was judged against. A run that was interrupted goes on from its newest checkpoint.
    DataError where the sequences have no certificate that passes.
    """
    require_package(config.train.track)
    inputs = (SEQUENCES, VOCABULARY, EVENT_TYPES)
    versions = {table.name: warehouse.version(table) for table in inputs}
    data_versions = {table.name: warehouse.data_version(table, versions[table.name]) for table in inputs}
    made_from = (warehouse.origin(SEQUENCES) or {}).get("made_from") or {}
    require_features(made_from, config.model)
    require_labels(made_from, config.model)
    settings: dict[str, Any] = {"model": asdict(config.model), "train": asdict(config.train)}
    identity: list[dict[str, Any]] = [data_versions, {"model": settings["model"], "train": config.train.identity()}]
    models = read_models(warehouse)
    table_ids, of_sequences = token_table_ids(warehouse), {SEQUENCES_ID: sequences_id(warehouse)}
    # Tables that were removed and made anew reach the same versions, and their rows mean something else.
    if outlived_by_a_model(warehouse, models):
        identity.append(table_ids)
    if outlived_by_a_model(warehouse, models, [SEQUENCES]):
        identity.append(of_sequences)
    current, waiting = models.champion, models.challenger if config.gate.enabled else None
    for model, state in ((current, ""), (waiting, ", and waits for `llm-spark evaluate`")):
        if model is not None and _is_same_model(warehouse, model, identity):
            account.nothing_to_do = (
                f"model {model.model_id} was trained on this data with these settings already{state}"
            )
            return
    splits = _splits(warehouse)
    sizes = {
        "num_tokens": _num_tokens(warehouse, VOCABULARY, versions),
        "num_event_types": _num_tokens(warehouse, EVENT_TYPES, versions),
    }
    parent = Parent()
    if config.train.warm_start:
        champion_id = current.model_id if current is not None else None
        parent = choose_parent(warehouse, champion_id, config.model, sizes, data_versions, splits, table_ids)
        begins = f"from scratch: {parent.objection}" if parent.objection else f"with the weights of {parent.model_id}"
        account.remarks.append(f"begins {begins}")
    settings["parent"] = parent.model_id
    model_id = _model_id(identity, parent.model_id)
    earlier = models.get(model_id)
    if earlier is not None and (judgement := _judgement(earlier, config)):
        account.nothing_to_do = f"model {model_id}, trained on this data with these settings, {judgement}"
        return
    account.begin(f"train model {model_id} on sequences v{versions[SEQUENCES.name]}, or take it where it is whole")
    require_certificate(warehouse)
    if earlier is not None and is_whole(warehouse, earlier):
        alias = _register(warehouse, config, model_id)
        account.remarks.append(f"model {model_id}, trained earlier on this data with these settings, is {alias} again")
        account.wrote(warehouse, MODELS)
        return
    discard_artifact(warehouse.model_path(model_id))
    folder = TrainingFolder(f"{warehouse.root}/staging", model_id)
    all_ids = table_ids | of_sequences
    versions |= _version_to_go_on_with(warehouse, folder, all_ids, account)
    training = _snapshot(warehouse, versions, "train")
    if not training.files:
        raise DataError("the sequences table has no training rows: bring more events, or move sequences.train_until")
    folder.note(versions, data_versions, all_ids)
    begin_at = (
        initial_embedding(warehouse, versions[SEQUENCES.name], config.model, config.train.seed, model_id)
        if parent.path is None
        else contextlib.nullcontext()
    )
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
            num_tokens=sizes["num_tokens"],
            num_event_types=sizes["num_event_types"],
            artifact_path=warehouse.model_path(model_id),
            work_dir=folder.path,
            provenance={
                "model_id": model_id,
                "parent": parent.model_id,
                "table_versions": versions,
                "data_versions": data_versions,
                **all_ids,
                "code_version": code_version(),
                "splits": splits,
                "values": (warehouse.origin(SEQUENCES) or {}).get("values"),
            },
            parent_path=parent.path,
            tracking_path=f"{warehouse.root}/tensorboard",
            initial_embedding=item_vectors,
            on_progress=show,
        )
        result = train_model(warehouse.spark, job)
    log.info("%s", result.model_summary)
    _write_metrics(warehouse, model_id, result)
    trained = Model(
        model_id=model_id,
        created_at=datetime.now(UTC).replace(tzinfo=None),
        config=json.dumps(settings),
        table_versions=json.dumps(versions),
        metrics=_metrics(result),
        artifact=f"models/{model_id}",
        alias="",
        reason="",
        code_version=code_version(),
    )
    alias = _register(warehouse, config, model_id, trained)
    folder.remove()
    folder.remove_outdated(data_versions)
    account.rows_in = {"training_files": len(training.files)}
    account.rows_out = {"steps": result.num_steps, "tokens": result.num_tokens, "parameters": result.num_parameters}
    account.read = versions
    account.wrote(warehouse, MODELS, TRAINING_METRICS)
    if result.resumed_at_step is not None:
        account.remarks.append(f"gone on from step {result.resumed_at_step}, where an earlier run was interrupted")
    recall = (
        ""
        if result.best_recall is None
        else f", validation recall@20 {result.best_recall:.3f} at step {result.best_step}"
    )
    account.remarks.append(f"model {model_id} by {result.num_ranks} rank(s): loss {result.final_loss:.3f}{recall}")
    account.remarks.append(
        f"it is {alias}{'' if alias == CHAMPION else ': `llm-spark evaluate` decides whether it scores'}"
    )


def _model_id(identity: list[dict[str, Any]], parent_id: str | None) -> str:
    content = json.dumps([llm_spark.__version__, *identity, parent_id], sort_keys=True)
    return "m" + hashlib.sha256(content.encode()).hexdigest()[:12]


def _is_same_model(warehouse: Warehouse, model: Model, identity: list[dict[str, Any]]) -> bool:
    """Whether this model, whatever it began with, is the one that this data and these settings ask for, and whole."""
    return model.model_id == _model_id(identity, model.json("config").get("parent")) and is_whole(warehouse, model)


def _judgement(earlier: Model, config: Config) -> str:
    """How this model was judged against, so that it must not come back by itself; empty where it was not.

    With the gate closed down its judgement does not count any more, a person's does.
    """
    if not earlier.judged_by or (earlier.judged_by == GATE and not config.gate.enabled):
        return ""
    by_hand = f"`llm-spark models promote {earlier.model_id}`"
    return f"was archived ({earlier.reason}): bring newer data or other settings, or promote it by {by_hand}"


def _version_to_go_on_with(
    warehouse: Warehouse, folder: TrainingFolder, table_ids: dict[str, str], account: Account
) -> dict[str, int]:
    """The version of the sequences that an interrupted run read, if its files are all there; else what it left is removed."""
    if folder.is_of_other_tables(table_ids):
        account.remarks.append("begins anew: the tables that an interrupted run read have been made anew since")
        folder.remove()
    begun_with = folder.begun_with()
    if begun_with is None:
        return {}
    pinned = {SEQUENCES.name: begun_with}
    try:
        if all(is_readable(_snapshot(warehouse, pinned, split)) for split in ("train", "validation")):
            return pinned
    except UserError as error:
        log.warning("train: %s", error)
    account.remarks.append(
        f"begins anew: the files of sequences v{begun_with}, which an interrupted run read, are gone"
    )
    folder.remove()
    return {}


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


def _register(warehouse: Warehouse, config: Config, model_id: str, trained: Model | None = None) -> str:
    """Give a model that was `trained` now, or one that the registry knows, its alias, and say which."""

    def moved(models: Models) -> Models:
        known, at = models.get(model_id), models.moment()
        model = replace(trained, moves=known.moves if known else ()) if trained else models.find(model_id)
        if config.gate.enabled:
            return as_challenger(models, model, at, "trained, and not yet before the gate")
        return as_champion(models, model, at, TRAIN, "newest trained model")

    change(warehouse, moved)
    return CHALLENGER if config.gate.enabled else CHAMPION


def _metrics(result: TrainingResult) -> str:
    return json.dumps(
        {
            "final_loss": result.final_loss,
            "best_step": result.best_step,
            "validation_recall_at_20": result.best_recall,
        }
    )
