"""Which model a new one begins with (`train.warm_start`): the champion, unless there is a reason against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_spark.config import ModelConfig
from llm_spark.errors import UserError
from llm_spark.model.artifact import LoadedModel, load_artifact
from llm_spark.pipelines.registry.token_tables import made_anew
from llm_spark.schemas import VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.training.warm_start import differing_setting
from llm_spark.transforms.history_kernel import BY_TIME


@dataclass(frozen=True)
class Parent:
    """The model whose weights the new one begins with."""

    model_id: str | None = None
    path: str | None = None
    objection: str = ""
    """Why the champion was passed over; the new model then begins from scratch."""


def choose_parent(
    warehouse: Warehouse,
    champion_id: str | None,
    model_config: ModelConfig,
    sizes: dict[str, int],
    data_versions: dict[str, int],
    splits: dict[str, str | None],
    table_ids: Mapping[str, str],
) -> Parent:
    """The champion, if its weights mean the same here and it has seen nothing that is to validate or test the new model. `table_ids` are those
    of the tables that hold tokens, as artifacts note them."""
    if champion_id is None:
        return Parent(objection="there is no champion yet")
    path = warehouse.model_path(champion_id)
    try:
        champion = load_artifact(path)
    except UserError as error:
        return Parent(objection=str(error))
    objection = (
        differing_setting(champion.model.config, model_config)
        or _other_tokens(champion, sizes, data_versions, table_ids)
        or _has_seen_later_events(champion.tables["splits"], splits)
    )
    return Parent(objection=f"champion {champion_id}: {objection}") if objection else Parent(champion_id, path)


def _other_tokens(
    champion: LoadedModel, sizes: dict[str, int], data_versions: dict[str, int], table_ids: Mapping[str, str]
) -> str:
    for name, size in sizes.items():
        if champion.config[name] > size:
            return f"{name} is {size} and was {champion.config[name]}"
    earlier: dict[str, Any] = champion.tables.get("data_versions", {})
    if earlier.get(VOCABULARY.name, 0) > data_versions[VOCABULARY.name]:
        return "the vocabulary has been made anew since, so its tokens mean other items"
    if table := made_anew(champion.tables, table_ids):
        return f"the table {table} has been made anew since, so its tokens mean something else"
    return ""


def _has_seen_later_events(theirs: dict[str, str | None], ours: dict[str, str | None]) -> str:
    """By time alone it is known what a model has not seen."""
    if theirs.get("split", BY_TIME) != BY_TIME or ours["split"] != BY_TIME:
        return "only where both are split by time is it known that it has not seen what validates and tests this model"
    for name in ("train_until", "validation_until"):
        their_end, our_end = theirs[name], ours[name]
        if their_end is not None and our_end is not None and their_end > our_end:
            return f"its {name} was {their_end}, later than {our_end} here"
    return ""
