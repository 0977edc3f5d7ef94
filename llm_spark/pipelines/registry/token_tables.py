"""Which tables a model's tokens are of: one that was removed and made anew reaches the same versions, and its tokens mean something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_spark.pipelines.registry.aliases import Models
from llm_spark.schemas import EVENT_TYPES, VOCABULARY
from llm_spark.tables.warehouse import Warehouse

_NOTED_AS = {"vocabulary_id": VOCABULARY, "event_types_id": EVENT_TYPES}


def token_table_ids(warehouse: Warehouse) -> dict[str, str]:
    """As an artifact notes them. UserError where a table is missing."""
    return {name: warehouse.log(table).table_id for name, table in _NOTED_AS.items()}


def made_anew(noted: Mapping[str, Any], ids: Mapping[str, str]) -> str:
    """The name of the first table that is another one than an artifact has noted; empty where none is. Earlier versions noted fewer."""
    return next((_NOTED_AS[name].name for name in ids if noted.get(name) not in (None, ids[name])), "")


def outlived_by_a_model(warehouse: Warehouse, models: Models) -> bool:
    """Whether the registry knows a model of earlier token tables than those of now. Its rows stay for good, so once true it remains so."""
    tables_since = max(warehouse.log(table).created_at for table in _NOTED_AS.values())
    return any(model.created_at is not None and model.created_at < tables_since for model in models.rows)
