"""`llm-spark models`: the registry listed, shown, compared, and its champion chosen by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pyspark.sql import functions as F

from llm_spark.errors import UserError
from llm_spark.evaluation.estimates import MODEL
from llm_spark.logs import log
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.query import print_table
from llm_spark.pipelines.registry.aliases import (
    ALIASES,
    HAND,
    ROLLBACK,
    Model,
    Models,
    as_champion,
    change,
    read_models,
    require_unchanged,
)
from llm_spark.pipelines.registry.serving import objection_to
from llm_spark.schemas import EVALUATION, MODELS
from llm_spark.tables.warehouse import Warehouse


def run_action(warehouse: Warehouse, name: str, ids: Sequence[str], reason: str = "") -> None:
    """Run one of `llm-spark models NAME`, with as many ids as it takes."""
    _ACTIONS[name](warehouse, ids, reason)


def _list(warehouse: Warehouse, ids: Sequence[str], reason: str) -> None:
    models = read_models(warehouse)
    if not models.rows:
        log.info("no model is in the warehouse '%s' yet: run `llm-spark train`", warehouse.root)
        return
    places = {alias: place for place, alias in enumerate(ALIASES)}
    newest_first = sorted(models.rows, key=lambda model: model.since, reverse=True)
    rows = [
        (m.model_id, m.alias, _second(m.since), _second(m.created_at), "" if m.artifact else "removed", m.reason)
        for m in sorted(newest_first, key=lambda model: places.get(model.alias, len(places)))
    ]
    print_table(["model", "alias", "since (UTC)", "trained (UTC)", "artifact", "reason"], rows)


def _show(warehouse: Warehouse, ids: Sequence[str], reason: str) -> None:
    model = read_models(warehouse).find(ids[0])
    print_table(["", model.model_id], list(_facts(model).items()))
    if model.moves:
        moves = [(_second(move.at), move.alias, move.cause, move.former or "", move.reason) for move in model.moves]
        print_table(["at (UTC)", "became", "by", "in place of", "reason"], moves)
    measured = _evaluated(warehouse, model.model_id)
    if measured:
        print_table(["metric on the test split", "value"], list(measured.items()))
    if (objection := objection_to(warehouse, model)) and model.artifact is not None:
        log.warning("%s", objection)


def _compare(warehouse: Warehouse, ids: Sequence[str], reason: str) -> None:
    models = read_models(warehouse)
    first = models.find(ids[0])
    second = models.find(ids[1]) if len(ids) > 1 else models.champion
    if second is None:
        raise UserError("no model is champion to compare it with: name a second model")
    if second.model_id == first.model_id:
        raise UserError(f"{first.model_id} would be compared with itself: name another model")
    sides = [_facts(model) | _evaluated(warehouse, model.model_id) for model in (first, second)]
    rows = [(name, *(side.get(name, "") for side in sides)) for name in dict.fromkeys([*sides[0], *sides[1]])]
    print_table(["what differs", first.model_id, second.model_id], [row for row in rows if row[1] != row[2]])
    windows = {side[_WINDOW] for side in sides if _WINDOW in side}
    if len(windows) > 1:
        log.warning("the two were tested on different versions of the sequences: their metrics cannot be compared")


def _promote(warehouse: Warehouse, ids: Sequence[str], reason: str) -> None:
    account = Account("models")
    models = read_models(warehouse)
    model = models.find(ids[0])
    if models.champion_ids == {model.model_id}:
        log.info("models: nothing to do, %s is champion already", model.model_id)
        return
    _require_sound(warehouse, model)
    why = f"promoted by hand: {reason}" if reason else "promoted by hand"
    _move(warehouse, models, account, lambda now: as_champion(now, now.find(model.model_id), now.moment(), HAND, why))
    account.remarks.append(f"{model.model_id} is champion")
    account.close(warehouse)


def _roll_back(warehouse: Warehouse, ids: Sequence[str], reason: str) -> None:
    account = Account("models")
    models = read_models(warehouse)
    current = models.champion
    if current is None:
        raise UserError(
            "no model is champion, so there is none to go back from: `llm-spark models promote ID` makes one"
        )
    former_id = models.former(current)
    if former_id is None or models.get(former_id) is None:
        raise UserError(f"before champion {current.model_id} there was none to go back to: promote another by its id")
    former = models.find(former_id)
    _require_sound(warehouse, former)
    why = f"rolled back from {current.model_id}{': ' + reason if reason else ''}"
    behind = models.former(former)
    _move(
        warehouse,
        models,
        account,
        lambda now: as_champion(now, now.find(former.model_id), now.moment(), ROLLBACK, why, former=behind),
    )
    account.remarks.append(f"{former.model_id} is champion again, in place of {current.model_id}")
    account.close(warehouse)


_ACTIONS: dict[str, Callable[[Warehouse, Sequence[str], str], None]] = {
    "list": _list,
    "show": _show,
    "compare": _compare,
    "promote": _promote,
    "rollback": _roll_back,
}


def _move(warehouse: Warehouse, decided_on: Models, account: Account, move: Callable[[Models], Models]) -> None:
    """Move aliases unless the champion has become another since the decision."""

    def unless_changed(now: Models) -> Models:
        require_unchanged(now, decided_on)
        return move(now)

    moved = change(warehouse, unless_changed)
    before = {model.model_id: model.alias for model in decided_on.rows}
    account.rows_in = {"models": len(decided_on.rows)}
    account.rows_out = {"aliases_moved": sum(before.get(m.model_id) != m.alias for m in moved.rows)}
    account.wrote(warehouse, MODELS)


def _require_sound(warehouse: Warehouse, model: Model) -> None:
    if objection := objection_to(warehouse, model):
        raise UserError(f"model {model.model_id} cannot score: {objection}")


_WINDOW = "tested on sequences"


def _facts(model: Model) -> dict[str, str]:
    """What the row says, each setting and metric on its own."""
    return {
        "alias": model.alias,
        "since (UTC)": _second(model.since),
        "reason": model.reason,
        "trained (UTC)": _second(model.created_at),
        "code version": model.code_version or "not noted",
        "artifact": model.artifact or "removed",
        **_flat(model.json("table_versions"), "table_versions."),
        **_flat(model.json("config"), ""),
        **_flat(model.json("metrics"), "metrics."),
    }


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Nested values by their dotted names, as settings are named."""
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": _told(value)}
    return found


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return value if isinstance(value, str) else json.dumps(value)


def _evaluated(warehouse: Warehouse, model_id: str) -> dict[str, str]:
    """The model's own metrics over all test positions, each with its interval."""
    own = (F.col("model_id") == model_id) & (F.col("recommender") == MODEL) & (F.col("slice") == "all")
    rows = warehouse.read_or_empty(EVALUATION).where(own).orderBy("name").collect()
    absolute = [row for row in rows if row.asDict().get("against") is None]
    told = {row["name"]: _interval(row["value"], row["ci_low"], row["ci_high"]) for row in absolute}
    return told | ({_WINDOW: f"v{absolute[0]['sequences_version']}"} if absolute else {})


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4f}" + (f" [{low:.4f}, {high:.4f}]" if low is not None and high is not None else "")


def _second(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}" if time is not None else ""
