"""The rows of `models`, and how their aliases move: at most one champion and one challenger, all rows concerned in one commit.

A move is a function from the rows as they are to the rows as they shall be. `change` reads, moves and writes as one turn: where another run
came first it reads again, so that each move sees what the one before it left, and one that was decided upon another champion is refused.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, Row

from llm_spark.errors import UserError
from llm_spark.schemas import MODELS
from llm_spark.tables.warehouse import Warehouse

CHAMPION, CHALLENGER, ARCHIVED = ALIASES = ("champion", "challenger", "archived")

TRAIN, GATE, HAND, ROLLBACK, FOLLOWED = "train", "gate", "hand", "rollback", "followed"
"""What moves an alias. A model that was archived because another followed may come back by itself, one that was judged may not."""

_WRITER = "llm_spark-aliases"
_MAX_TRIES = 5


@dataclass(frozen=True)
class Move:
    """One alias that a model got; the fields are those of the column `moves`."""

    alias: str
    at: datetime
    cause: str
    reason: str
    former: str | None = None


@dataclass(frozen=True)
class Model:
    """One row of `models`; the fields are its columns. Rows of earlier versions lack the last three."""

    model_id: str
    created_at: datetime
    config: str
    table_versions: str
    metrics: str
    artifact: str | None
    alias: str
    reason: str
    code_version: str | None = None
    changed_at: datetime | None = None
    moves: tuple[Move, ...] = ()

    @classmethod
    def of_row(cls, row: Row) -> Model:
        values = {name: value for name, value in row.asDict(recursive=True).items() if name in _COLUMNS}
        return cls(**values | {"moves": tuple(Move(**move) for move in values.get("moves") or ())})

    def json(self, column: str) -> dict[str, Any]:
        """A column that holds JSON. UserError where it holds none."""
        try:
            found = json.loads(getattr(self, column))
        except (TypeError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"the row of model {self.model_id} in the table models is damaged: its {column} is no JSON object; "
                "restore an earlier version of the table"
            )
        return found

    @property
    def since(self) -> datetime:
        return self.changed_at or self.created_at or datetime.min

    @property
    def judged_by(self) -> str:
        """What archived it, unless that was only another model's coming: gate, hand or rollback; else empty."""
        cause = self.moves[-1].cause if self.moves else FOLLOWED
        return cause if self.alias == ARCHIVED and cause in (GATE, HAND, ROLLBACK) else ""

    def moved(self, move: Move) -> Model:
        return replace(self, alias=move.alias, reason=move.reason, changed_at=move.at, moves=(*self.moves, move))


_COLUMNS = {entry.name for entry in fields(Model)}


@dataclass(frozen=True)
class Models:
    """All rows of `models` as they stood in one version."""

    rows: tuple[Model, ...] = ()

    @classmethod
    def of_frame(cls, rows: DataFrame) -> Models:
        return cls(tuple(map(Model.of_row, rows.collect())))

    @property
    def champion(self) -> Model | None:
        return self._only(CHAMPION)

    @property
    def challenger(self) -> Model | None:
        return self._only(CHALLENGER)

    @property
    def champion_ids(self) -> frozenset[str]:
        return frozenset(model.model_id for model in self.rows if model.alias == CHAMPION)

    def get(self, model_id: str) -> Model | None:
        return next((model for model in self.rows if model.model_id == model_id), None)

    def find(self, model_id: str) -> Model:
        """UserError for an unknown id, naming the nearest."""
        if (model := self.get(model_id)) is not None:
            return model
        known = [model.model_id for model in self.rows if model.model_id]
        if not known:
            raise UserError(f"there is no model '{model_id}', nor any other: run `llm-spark train` first")
        near = difflib.get_close_matches(model_id, known, n=1, cutoff=0.0)
        raise UserError(f"there is no model '{model_id}': the nearest is '{near[0]}'; `llm-spark models` lists them")

    def former(self, model: Model) -> str | None:
        """The model that this one followed as champion, if any."""
        as_champion = [move for move in model.moves if move.alias == CHAMPION]
        if as_champion:
            return as_champion[-1].former
        # Rows of earlier versions say it of the other.
        before = [other for other in self.rows if other.reason == _followed_by(model.model_id)]
        return max(before, key=lambda other: other.since).model_id if before else None

    def moment(self) -> datetime:
        """UTC now, or where the clock was moved back a moment after the newest move: who came last is told by time."""
        newest = max((model.since for model in self.rows), default=datetime.min)
        return max(datetime.now(UTC).replace(tzinfo=None), newest + timedelta(milliseconds=1))

    def having(self, *changed: Model) -> Models:
        """With these rows in place of those of the same models, or beside them."""
        ids = {model.model_id for model in changed}
        return Models((*(model for model in self.rows if model.model_id not in ids), *changed))

    def check(self) -> None:
        """UserError where a row is not what this program writes."""
        seen: set[str] = set()
        for model in self.rows:
            wrong = ""
            if not model.model_id:
                wrong = "a row has no model_id"
            elif model.model_id in seen:
                wrong = f"model {model.model_id} has two rows"
            elif model.alias not in ALIASES:
                wrong = f"model {model.model_id} has the alias '{model.alias}', which is none of {', '.join(ALIASES)}"
            if wrong:
                raise UserError(f"the table models is damaged: {wrong}; restore an earlier version of the table")
            seen.add(model.model_id)

    def _only(self, alias: str) -> Model | None:
        found = [model for model in self.rows if model.alias == alias]
        if len(found) > 1:
            ids = ", ".join(sorted(str(model.model_id) for model in found))
            raise UserError(
                f"the table models is damaged: {ids} are all {alias}; `llm-spark models promote ID` leaves one champion, "
                "or restore an earlier version of the table"
            )
        return found[0] if found else None


def _followed_by(model_id: str) -> str:
    return f"followed by {model_id}"


def as_challenger(models: Models, model: Model, at: datetime, reason: str) -> Models:
    """This model, known or new, waits for the gate in place of any other that waited."""
    _require_artifact(model)
    waiting = (other for other in models.rows if other.alias == CHALLENGER and other.model_id != model.model_id)
    followed = Move(ARCHIVED, at, FOLLOWED, _followed_by(model.model_id))
    return models.having(*(m.moved(followed) for m in waiting), model.moved(Move(CHALLENGER, at, TRAIN, reason)))


def as_champion(
    models: Models, model: Model, at: datetime, cause: str, reason: str, former: str | None = None
) -> Models:
    """This model, known or new, scores, and whichever did is archived. A rollback says which `former` is behind the one that returns."""
    _require_artifact(model)
    others = [other for other in models.rows if other.model_id != model.model_id]
    champions = [other for other in others if other.alias == CHAMPION]
    # Without a gate nothing will ever decide upon one that waits.
    leaving = [other for other in others if other.alias == CHAMPION or (cause == TRAIN and other.alias == CHALLENGER)]
    if cause != ROLLBACK:
        former = max(champions, key=lambda other: other.since).model_id if champions else None
    why = {HAND: f"{model.model_id} was promoted by hand", ROLLBACK: f"rolled back to {model.model_id}"}
    left = Move(ARCHIVED, at, cause if cause in why else FOLLOWED, why.get(cause, _followed_by(model.model_id)))
    came = Move(CHAMPION, at, cause, reason, former)
    return models.having(*(other.moved(left) for other in leaving), model.moved(came))


def _require_artifact(model: Model) -> None:
    if model.artifact is None:
        raise UserError(f"model {model.model_id} has no artifact any more ({model.reason}): train it again")


def as_refused(models: Models, model: Model, at: datetime, reason: str) -> Models:
    """The gate has judged against this model."""
    return models.having(model.moved(Move(ARCHIVED, at, GATE, reason)))


def without_artifacts(models: Models, model_ids: Collection[str], sentence: str) -> Models:
    """These models keep their rows alone; `sentence` says what became of their weights."""
    gone = (model for model in models.rows if model.model_id in model_ids)
    return models.having(*(replace(m, artifact=None, reason=f"{m.reason}; {sentence}") for m in gone))


def require_unchanged(models: Models, decided_on: Models) -> None:
    """UserError where the champion is another than when a decision was made."""
    before, now = decided_on.champion_ids, models.champion_ids
    if now != before:
        came, went = sorted(now - before), sorted(before - now)
        whose = f"model {came[0]} became champion" if came else f"champion {went[0]} was archived"
        raise UserError(f"{whose} meanwhile, by another run: look at `llm-spark models`, then run this again")


def read_models(warehouse: Warehouse) -> Models:
    """All rows as they are; not checked."""
    return Models.of_frame(warehouse.read_or_empty(MODELS))


def change(warehouse: Warehouse, move: Callable[[Models], Models]) -> Models:
    """Read the rows, move them and write them as one turn; returns them as written.

    UserError where the table is damaged, where `move` refuses what it finds, or where others keep changing the table.
    """
    warehouse.create(MODELS)
    with warehouse.locked(MODELS):
        for _ in range(_MAX_TRIES):
            log = warehouse.log(MODELS)
            models = Models.of_frame(warehouse.read(MODELS, log.version))
            models.check()
            moved = move(models)
            if warehouse.replace_in_turn(MODELS, _frame(warehouse, moved), _WRITER, log.last_turn(_WRITER) + 1):
                return moved
    raise UserError(
        f"other runs keep changing the table models in '{warehouse.root}': let them finish, then run this again"
    )


def _frame(warehouse: Warehouse, models: Models) -> DataFrame:
    names = MODELS.schema.names
    rows = [tuple(getattr(model, name) for name in names) for model in models.rows]
    as_rows = [(*row[:-1], [(m.alias, m.at, m.cause, m.reason, m.former) for m in row[-1]]) for row in rows]
    return warehouse.spark.createDataFrame(as_rows, MODELS.schema).coalesce(1)
