"""Models as they serve: which one scores, which waits for the gate, each with its artifact found whole."""

from __future__ import annotations

from dataclasses import dataclass

from llm_spark.config import ModelConfig
from llm_spark.errors import DataError, UserError
from llm_spark.evaluation.estimates import MODEL
from llm_spark.logs import log
from llm_spark.model.artifact import LoadedModel, load_artifact
from llm_spark.pipelines.registry.aliases import CHAMPION, GATE, Model, Models
from llm_spark.pipelines.registry.token_tables import SEQUENCES_ID
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import MODELS, SEQUENCES
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.history_kernel import BY_TIME


@dataclass(frozen=True)
class Champion:
    """The model that scores, or the challenger that may, its artifact found whole."""

    model_id: str
    path: str
    num_tokens: int
    num_event_types: int
    sequences_version: int
    """The data version of the sequences that it was trained and chosen on."""
    sequences_id: str | None
    """Which table that is a version of; None for models of earlier versions of this program."""
    split: str
    """How those were split."""
    validation_until: str | None
    """By time, the UTC end of what it was chosen on: nothing earlier may test it. None where each user's last was left out."""
    values: ValueTreatment
    """What was done to the values that it was trained on."""
    config: ModelConfig


def champion(warehouse: Warehouse) -> Champion:
    """DataError where no model is champion, saying what to do; UserError where none was ever trained, or its artifact is damaged."""
    return loaded(warehouse, _champion_of(Models.of_frame(warehouse.read(MODELS))))


def evaluated_models(warehouse: Warehouse) -> dict[str, Model]:
    """Whom to measure: as `model` the challenger, and the `champion` beside it where there is one; without a challenger the champion alone.

    DataError where there is neither, UserError where no model was ever trained.
    """
    models = Models.of_frame(warehouse.read(MODELS))
    if (waiting := models.challenger) is None:
        return {MODEL: _champion_of(models)}
    return {MODEL: waiting} | ({CHAMPION: models.champion} if models.champion is not None else {})


def loaded(warehouse: Warehouse, model: Model) -> Champion:
    """UserError where its artifact is gone or damaged."""
    found = _artifact_of(warehouse, model)
    splits = found.tables["splits"]
    versions = found.tables.get("data_versions", found.tables["table_versions"])
    return Champion(
        model.model_id,
        found.path,
        found.model.num_tokens,
        found.model.num_event_types,
        versions[SEQUENCES.name],
        found.tables.get(SEQUENCES_ID),
        splits.get("split", BY_TIME),
        splits["validation_until"],
        ValueTreatment.of_json(found.tables.get("values")),
        found.model.config,
    )


def _artifact_of(warehouse: Warehouse, model: Model) -> LoadedModel:
    if model.artifact is None:
        raise UserError(f"the artifact of model {model.model_id} was removed ({model.reason})")
    return load_artifact(warehouse.model_path(model.model_id))


def _champion_of(models: Models) -> Model:
    if models.champion is None:
        raise DataError(_why_none(models))
    return models.champion


def _why_none(models: Models) -> str:
    if (waiting := models.challenger) is not None:
        by_hand = f"`llm-spark models promote {waiting.model_id}` promotes it by hand"
        return f"no model is champion, and {waiting.model_id} waits for the gate: run `llm-spark evaluate`; {by_hand}"
    refused = [model for model in models.rows if model.judged_by == GATE]
    if refused:
        last = max(refused, key=lambda model: model.since)
        by_hand = f"`llm-spark models promote {last.model_id}` promotes it by hand"
        return f"no model has passed the gate: {last.model_id} was {last.reason}; {by_hand}"
    return "no model is champion: run `llm-spark train`"


def objection_to(warehouse: Warehouse, model: Model) -> str:
    """Why this model cannot score, its artifact being gone or damaged; empty where it can."""
    try:
        _artifact_of(warehouse, model)
    except UserError as error:
        return str(error)
    return ""


def is_whole(warehouse: Warehouse, model: Model) -> bool:
    """Whether its artifact is there and whole; where it is damaged, the log says so."""
    objection = objection_to(warehouse, model)
    if objection and model.artifact is not None:
        log.warning("train: %s", objection)
    return not objection
