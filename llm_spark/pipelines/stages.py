"""Run a stage by name with its account."""

from __future__ import annotations

import importlib
from datetime import date

from llm_spark.config import Config
from llm_spark.errors import DataError, Refusal, UserError
from llm_spark.logs import log
from llm_spark.pipelines.account import FAILED, REFUSED, Account
from llm_spark.pipelines.clock import begin_run
from llm_spark.tables.failures import storage_told
from llm_spark.tables.warehouse import Warehouse


def run_stage(name: str, warehouse: Warehouse, config: Config, *, night_id: str = "", **options: bool | str) -> Account:
    """Run one stage and close its account: logged, and recorded in `runs` unless there was nothing to do. `options` are the stage's own.

    As a step of a night a run that failed is recorded too. UserError in one line where the storage failed.
    """
    account = Account(name, night_id=night_id, as_of_date=as_of_date(config))
    try:
        with storage_told(warehouse.root):
            account.started_at = begin_run(warehouse)
            stage_of(name)(warehouse, config, account, **options)
            account.close(warehouse)
    except Exception as error:
        _record_failure(warehouse, account, error)
        raise
    if account.refusal:
        raise Refusal(account.refusal)
    return account


def stage_of(name: str):  # type: ignore[no-untyped-def]
    """The stage's function. Imported when it runs: torch takes seconds to load, and only three stages need it."""
    return getattr(importlib.import_module(f"llm_spark.pipelines.{name}"), name)


def as_of_date(config: Config) -> date | None:
    return date.fromisoformat(config.as_of) if config.as_of is not None else None


def _record_failure(warehouse: Warehouse, account: Account, error: Exception) -> None:
    """What was measured, and in a night the failure itself; where the storage is at fault that may fail too, and is not what to tell of."""
    try:
        if isinstance(error, UserError):
            account.record_checks(warehouse)
        if account.night_id:
            account.record(warehouse, REFUSED if isinstance(error, DataError) else FAILED, one_line(error))
    except Exception as further:
        log.warning("%s: its failure could not be recorded (%s)", account.stage, one_line(further))


def one_line(error: BaseException) -> str:
    """What a user can put right in full; of any other error the kind and the first line, at most 300 characters."""
    if isinstance(error, UserError):
        return str(error)
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:300]
