"""What keeps a model that the registry knows from scoring here, or from being compared with another."""

from __future__ import annotations

from llm_spark.errors import UserError
from llm_spark.pipelines.evaluation_window import other_vocabulary, seen_of_the_test
from llm_spark.pipelines.features import require_features, require_session_features
from llm_spark.pipelines.registry.aliases import Model
from llm_spark.pipelines.registry.serving import Champion, loaded
from llm_spark.schemas import SEQUENCES
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.history_kernel import BY_TIME


def why_it_cannot_score(warehouse: Warehouse, model: Model) -> str:
    """Empty where it can: its artifact is whole, and the vocabulary and the sessions are such as it was trained on."""
    try:
        return _other_than_trained_on(warehouse, loaded(warehouse, model))
    except UserError as error:
        return str(error)


def why_it_cannot_be_compared(warehouse: Warehouse, model: Model) -> str:
    """Why it cannot be measured on the newest test sequences; empty where it can."""
    try:
        found = loaded(warehouse, model)
        if why_not := _other_than_trained_on(warehouse, found):
            return why_not
        note = warehouse.origin(SEQUENCES) or {}
        require_features(note.get("made_from", {}), found.config)
    except UserError as error:
        return str(error)
    seen = seen_of_the_test(warehouse, found)
    if seen and note.get("split") != BY_TIME:
        return f"{seen}; give sequences.split=time, so that later models can be compared"
    return seen


def _other_than_trained_on(warehouse: Warehouse, model: Champion) -> str:
    require_session_features(warehouse, model.config.features, f"model {model.model_id}")
    return other_vocabulary(warehouse, model)
