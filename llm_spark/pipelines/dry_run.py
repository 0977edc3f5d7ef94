"""What a night would do, step by step, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Never

from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.clock import begin_run
from llm_spark.pipelines.drift import latest_advice
from llm_spark.pipelines.night import Night
from llm_spark.pipelines.night_training import Training, due_training, recorded_training
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.stages import stage_of
from llm_spark.tables.lease import Lease
from llm_spark.tables.warehouse import Warehouse


class _WouldRun(Exception):
    """A stage has found something to do."""


class _DryAccount(Account):
    def begin(self, what: str = "") -> None:
        raise _WouldRun(what)


class _Untouched(Warehouse):
    """Whatever would change a table ends the stage instead."""

    def _create(self, table: Any, properties: Any = None) -> Never:
        raise _WouldRun(f"write {table.name}")

    def delete(self, table: Any, condition: Any) -> None:
        self._create(table)

    def undo(self, table: Any) -> None:
        self._create(table)


def print_plan(warehouse: Warehouse, config: Config) -> None:
    """Print what each step of the night would do, and why."""
    for step, what in plan(_Untouched(warehouse.spark, warehouse.root), config):
        print(f"{step}: {what}")


def plan(warehouse: Warehouse, config: Config) -> Iterator[tuple[str, str]]:
    """Step and what it would do. What follows a step with work cannot be examined before that is done: it is told in general."""
    night = Night(warehouse, config, Lease(), "", begin_run(warehouse))
    for stage in ("ingest", "sessionize"):
        work, why = examined(stage, warehouse, config)
        yield stage, f"would {work}" if work else f"nothing to do, {why}"
        if work:
            yield from _unseen(warehouse, config, after=stage)
            return
    night.settle_day()
    training = recorded_training(night)
    if training is None:
        work, why = examined("drift", warehouse, night.config)
        yield "drift", f"would {work}" if work else f"nothing to do, {why}"
        if work:
            yield from _unseen(warehouse, night.config, after="drift")
            return
        training = due_training(warehouse, night.config, night.as_of.day, night.as_of.night)
    else:
        yield "drift", "nothing to do, it was decided for this day and these sessions whether to train"
    yield from _known(night, training)


def _known(night: Night, training: Training) -> Iterator[tuple[str, str]]:
    """The steps once it is known whether to train."""
    warehouse, config = night.warehouse, night.config
    yield "training", f"{training.action}: {training.reason}"
    stages = {"sequences": config, "train": training.config(config)} if training.is_due else {}
    stages |= {"evaluate": config, "score": config, "report": config}
    follows = ""
    for stage, settings in stages.items():
        if follows and stage != "report":
            yield stage, f"would follow what {follows} brings"
        elif stage == "evaluate" and not night.evaluates(training.is_due):
            yield stage, "nothing to do, no model waits for the gate"
        elif stage == "score" and not night.scores(training.is_due):
            yield stage, f"nothing to do, {night.refused_model()}"
        else:
            work, why = examined(stage, warehouse, settings)
            yield stage, f"would {work}" if work else f"nothing to do, {why}"
            follows = follows or (stage if work else "")


def _unseen(warehouse: Warehouse, config: Config, after: str) -> Iterator[tuple[str, str]]:
    """The steps after one that has work to do."""
    stages = ("ingest", "sessionize", "drift")
    for stage in stages[stages.index(after) + 1 :]:
        yield stage, f"would follow what {after} brings"
    advice = latest_advice(warehouse)
    if read_models(warehouse).champion is None:
        yield "training", "as_configured: there is no champion yet"
    elif config.nightly.train != "advised":
        yield "training", f"by nightly.train, '{config.nightly.train}'"
    else:
        newest = f"; its newest advice, of an earlier run: {advice.action}. {advice.reason}" if advice else ""
        yield "training", f"as drift will advise{newest}"
    yield "sequences, train, evaluate", "would follow where it is to be trained"
    yield "score", "would follow, by the champion that there then is"
    yield "report", "would write the page"


def examined(stage: str, warehouse: Warehouse, config: Config) -> tuple[str, str]:
    """What a stage would do, or empty and why there is nothing to do."""
    account = _DryAccount(stage, started_at=begin_run(warehouse))
    try:
        stage_of(stage)(warehouse, config, account)
    except _WouldRun as found:
        return str(found) or "run", ""
    except UserError as error:
        return f"end with an error: {error}", ""
    return ("", account.nothing_to_do) if account.nothing_to_do else ("run", "")
