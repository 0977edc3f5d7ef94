"""Which further numbers of the events the tables carry for the model, and that stages agree on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_spark.config import Config, ModelConfig
from llm_spark.errors import DataError, UsageError
from llm_spark.schemas import SESSIONS
from llm_spark.tables.warehouse import Warehouse


def checked_features(config: Config) -> list[str]:
    """model.features. UsageError where one is no attribute that ingest keeps."""
    kept = config.ingest.columns.attributes
    for name in config.model.features:
        if name not in kept:
            known = ", ".join(kept) or "none"
            raise UsageError(f"model.features names '{name}', which is none of ingest.columns.attributes ({known})")
    return list(config.model.features)


def features_note(features: list[str]) -> dict[str, Any]:
    """What a table's origin notes of them: nothing where there are none, as tables of earlier versions."""
    return {"features": features} if features else {}


def require_session_features(warehouse: Warehouse, features: list[str], asked_by: str) -> None:
    """DataError unless the sessions carry exactly these features; no features can be had from any sessions."""
    if not features:
        return
    carried = ((warehouse.origin(SESSIONS) or {}).get("settings") or {}).get("features", [])
    if carried != features:
        raise DataError(
            f"{asked_by} wants the features {', '.join(features)} and the sessions carry {', '.join(carried) or 'none'}: "
            f"give model.features={features} and run `llm-spark sessionize`"
        )


def require_features(made_from: Mapping[str, Any], config: ModelConfig) -> None:
    """DataError unless the sequences hold the features that the model is fed; `made_from` is noted in their origin."""
    held = made_from.get("features", [])
    if config.features and held != list(config.features):
        raise DataError(
            f"the model takes the features {', '.join(config.features)} and the sequences hold {', '.join(held) or 'none'}: "
            f"give model.features={list(config.features)} and run `llm-spark sessionize` and `llm-spark sequences`"
        )
