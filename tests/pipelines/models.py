"""Models for tests of the registry: small artifacts, and rows that say what they shall."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from llm_spark.config import ModelConfig
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.registry.aliases import TRAIN, Model, as_champion, change
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms.history_kernel import BY_TIME
from tests.training.sequences import SMALL_MODEL

START = datetime(2026, 1, 1)
SPLITS = {"split": BY_TIME, "train_until": "2025-01-05 00:00:00", "validation_until": "2025-01-06 00:00:00"}


def save_artifact(warehouse: Warehouse, model_id: str, config: ModelConfig = SMALL_MODEL, **noted: Any) -> None:
    """Of 12 tokens, by `save_token_tables`; `noted` stands in its provenance beside what every artifact has."""
    path = warehouse.model_path(model_id)
    tables = {"splits": SPLITS, "table_versions": {"sequences": 1, "vocabulary": 1}, **noted}
    save_manifest(path, save_content(path, NextEventModel(config, 12, 4), {}, tables))


def save_token_tables(warehouse: Warehouse) -> None:
    for table, name, size in ((VOCABULARY, "item", 12), (EVENT_TYPES, "type", 4)):
        rows = [(token, f"{name}{token}", 1, START) for token in range(FIRST_ITEM_TOKEN, size)]
        warehouse.replace(table, warehouse.spark.createDataFrame(rows, table.schema).coalesce(1), {})


def save_sequences(warehouse: Warehouse, **note: Any) -> None:
    """One row, as the next version, under the note of `SPLITS` or another."""
    row = tuple({"sequence_id": "s", "user_id": "u", "split": "test"}.get(name) for name in SEQUENCES.schema.names)
    rows = warehouse.spark.createDataFrame([row], SEQUENCES.schema).coalesce(1)
    warehouse.replace(SEQUENCES, rows, {"made_from": {}, **SPLITS, **note})


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
