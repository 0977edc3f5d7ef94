"""Which tables a model was made of: one that was removed and made anew reaches the same versions, and its rows mean something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llm_spark.pipelines.registry.aliases import Models
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse

_NOTED_AS = {"vocabulary_id": VOCABULARY, "event_types_id": EVENT_TYPES}
TOKEN_TABLES = tuple(_NOTED_AS.values())
SEQUENCES_ID = "sequences_id"
"""Under this name an artifact notes the table that its rows came from. Earlier versions noted none."""


def token_table_ids(warehouse: Warehouse) -> dict[str, str]:
    """As an artifact notes them. UserError where a table is missing."""
    return {name: warehouse.log(table).table_id for name, table in _NOTED_AS.items()}


def sequences_id(warehouse: Warehouse) -> str:
    """UserError where the table is missing."""
    return warehouse.log(SEQUENCES).table_id


def made_anew(noted: Mapping[str, Any], ids: Mapping[str, str]) -> str:
    """The name of the first table that is another one than an artifact has noted; empty where none is. Earlier versions noted fewer."""
    return next((_NOTED_AS[name].name for name in ids if noted.get(name) not in (None, ids[name])), "")


def outlived_by_a_model(warehouse: Warehouse, models: Models, tables: Iterable[Table] = TOKEN_TABLES) -> bool:
    """Whether the registry knows a model of earlier tables than these of now. Its rows stay for good, so once true it remains so."""
    tables_since = max(warehouse.log(table).created_at for table in tables)
    return any(model.created_at is not None and model.created_at < tables_since for model in models.rows)
