"""The models table: which model scores, and which did before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.config import ModelConfig
from llm_spark.errors import DataError, UserError
from llm_spark.logs import log
from llm_spark.model.artifact import load_artifact
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import MODELS, SEQUENCES
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.history_kernel import BY_TIME


@dataclass(frozen=True)
class Champion:
    """The model that scores, its artifact found whole."""

    model_id: str
    path: str
    num_tokens: int
    num_event_types: int
    sequences_version: int
    """The data version of the sequences that it was trained and chosen on."""
    split: str
    """How those were split."""
    validation_until: str | None
    """By time, the UTC end of what it was chosen on: nothing earlier may test it. None where each user's last was left out."""
    values: ValueTreatment
    """What was done to the values that it was trained on."""
    config: ModelConfig


def champion(warehouse: Warehouse) -> Champion:
    """UserError where there is no model yet, or its artifact is damaged."""
    row = _newest_champion(warehouse.read(MODELS))
    if row is None:
        raise DataError("no model is champion: run `llm-spark train`")
    path = warehouse.model_path(row["model_id"])
    loaded = load_artifact(path)
    splits = loaded.tables["splits"]
    versions = loaded.tables.get("data_versions", loaded.tables["table_versions"])
    return Champion(
        row["model_id"],
        path,
        loaded.model.num_tokens,
        loaded.model.num_event_types,
        versions[SEQUENCES.name],
        splits.get("split", BY_TIME),
        splits["validation_until"],
        ValueTreatment.of_json(loaded.tables.get("values")),
        loaded.model.config,
    )


def champion_row(warehouse: Warehouse) -> Row | None:
    """The champion's row, whatever has become of its artifact; None where there is no model yet."""
    return _newest_champion(warehouse.read_or_empty(MODELS))


def _newest_champion(models: DataFrame) -> Row | None:
    return models.where(F.col("alias") == "champion").orderBy(F.desc("created_at")).first()


def registered(warehouse: Warehouse, model_id: str) -> dict[str, Any] | None:
    """The model's row, if it has one and its artifact is whole."""
    row = warehouse.read_or_empty(MODELS).where(F.col("model_id") == model_id).first()
    if row is None:
        return None
    try:
        load_artifact(warehouse.model_path(model_id))
    except UserError as error:
        log.warning("train: %s", error)
        return None
    return row.asDict()


def promote(warehouse: Warehouse, model: dict[str, Any]) -> None:
    """Make this model, given as its row, champion and archive the former one, in one commit."""
    row = model | {"alias": "champion", "reason": "newest trained model"}
    promoted = warehouse.spark.createDataFrame([[row[name] for name in MODELS.schema.names]], MODELS.schema)
    is_former = (F.col("alias") == "champion") & (F.col("model_id") != model["model_id"])
    archived = warehouse.read_or_empty(MODELS).where(is_former)
    archived = archived.withColumns({"alias": F.lit("archived"), "reason": F.lit(f"followed by {model['model_id']}")})
    # Cut off from the table that is about to change.
    warehouse.upsert(MODELS, promoted.unionByName(archived).localCheckpoint(), "model_id")
