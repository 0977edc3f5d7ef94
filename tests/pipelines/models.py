"""Models for tests of the registry: small artifacts, and rows that say what they shall."""

from __future__ import annotations

from datetime import datetime, timedelta

from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.registry.aliases import TRAIN, Model, as_champion, change
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.history_kernel import BY_TIME
from tests.training.sequences import SMALL_MODEL

START = datetime(2026, 1, 1)
SPLITS = {"split": BY_TIME, "train_until": "2025-01-05 00:00:00", "validation_until": "2025-01-06 00:00:00"}


def save_artifact(warehouse: Warehouse, model_id: str) -> None:
    path = warehouse.model_path(model_id)
    tables = {"splits": SPLITS, "table_versions": {"sequences": 1}}
    save_manifest(path, save_content(path, NextEventModel(SMALL_MODEL, 12, 4), {}, tables))


def model(model_id: str, day: int = 0, table_versions: str = "{}", alias: str = "", reason: str = "") -> Model:
    at = START + timedelta(days=day)
    return Model(
        model_id, at, f'{{"train": {{"seed": {day}}}}}', table_versions, "{}", f"models/{model_id}", alias, reason
    )


def promote_in_turn(warehouse: Warehouse, *models: Model) -> None:
    """Each promoted the night after the one before, all in one commit."""

    def nights(now):  # type: ignore[no-untyped-def]
        for each in models:
            now = as_champion(now, each, each.created_at, TRAIN, "newest trained model")
        return now

    change(warehouse, nights)
