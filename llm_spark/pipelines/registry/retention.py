"""Artifacts of archived models that nothing needs any more: noted in their rows first, then removed, the manifest first.

Killed in between, the next run removes what the rows say is gone. A model is promoted under the same lock, so none can be champion without
its weights.

Nor does anything pin the versions of the tables that such a model was trained on any more: every training has its own copy of the sequences,
and to keep that of every model there ever was would let a warehouse grow for ever. The account and the model's row say so.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm_spark.files import locate
from llm_spark.model.artifact import discard_artifact
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry.aliases import ARCHIVED, Model, Models, change, read_models, without_artifacts
from llm_spark.pipelines.training_folder import TrainingFolder
from llm_spark.schemas import MODELS, PREDICTIONS
from llm_spark.tables.current import PREDICTIONS_CURRENT
from llm_spark.tables.warehouse import Warehouse, sql


def remove_artifacts(warehouse: Warehouse, num_kept: int, account: Account) -> None:
    """Keep the artifacts of the `num_kept` archived models that were archived last, and of whichever is in use; remove the others."""
    models = read_models(warehouse)
    in_use = _named_by_current_predictions(warehouse) if spare_artifacts(models, num_kept) else set()
    if spare_artifacts(models, num_kept) - in_use:
        by = f"maintain.keep_models={num_kept}"
        sentence = f"its artifact was removed on {account.started_at:%Y-%m-%d}, by {by}, and what it was trained on is pinned no longer"
        before = models
        models = change(
            warehouse, lambda now: without_artifacts(now, spare_artifacts(now, num_kept) - in_use, sentence)
        )
        account.wrote(warehouse, MODELS)
        account.remarks += unpinned_lines(before, models, by)
    removed = []
    for model_id in _folders(warehouse) & {model.model_id for model in models.rows if model.artifact is None}:
        if not TrainingFolder(f"{warehouse.root}/staging", model_id).exists():  # else it is being trained again
            discard_artifact(warehouse.model_path(model_id))
            removed.append(model_id)
    if removed:
        account.remarks.append(f"removed the artifacts of archived models: {', '.join(sorted(removed))}")


def spare_artifacts(models: Models, num_kept: int) -> set[str]:
    """Archived models with an artifact, but for the `num_kept` newest and the one that a rollback would return to."""
    archived = [model for model in models.rows if model.alias == ARCHIVED and model.artifact is not None]
    newest_first = sorted(archived, key=lambda model: (model.since, model.model_id), reverse=True)
    champion = models.champion
    former = models.former(champion) if champion is not None else None
    return {model.model_id for model in newest_first[num_kept:]} - {former}


def pinned_versions(models: Iterable[Model]) -> dict[tuple[str, int], list[str]]:
    """(table, version) -> the models with an artifact that were trained on it: without its weights nobody asks what a model came from."""
    by_version: dict[tuple[str, int], list[str]] = {}
    kept = (model for model in models if model.artifact is not None)
    for model in sorted(kept, key=lambda model: model.model_id):
        for name, version in model.json("table_versions").items():
            by_version.setdefault((name, int(version)), []).append(model.model_id)
    return dict(sorted(by_version.items()))


def unpinned_lines(before: Models, after: Models, by: str) -> list[str]:
    """Which versions no model pins any more, for each model that lost its artifact `by` a setting."""
    pinned, lines = pinned_versions(after.rows), []
    for model in before.rows:
        now = after.get(model.model_id)
        if model.artifact is not None and now is not None and now.artifact is None:
            unpinned = [
                f"{name} v{version}" for name, version in pinned_versions([model]) if (name, version) not in pinned
            ]
            if unpinned:
                lines.append(
                    f"pinned no longer: {', '.join(unpinned)}, which {model.model_id} was trained on, whose artifact goes by {by}"
                )
    return lines


def _named_by_current_predictions(warehouse: Warehouse) -> set[str]:
    if not warehouse.exists(PREDICTIONS):
        return set()
    served = sql(warehouse, f"SELECT DISTINCT model_id FROM {PREDICTIONS_CURRENT}")
    return {row["model_id"] for row in served.collect()}


def _folders(warehouse: Warehouse) -> set[str]:
    filesystem, name = locate(f"{warehouse.root}/models")
    filesystem.invalidate_cache()
    if not filesystem.exists(name):
        return set()
    return {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(name, detail=False)}
