"""Run a stage by name with its account."""

from __future__ import annotations

import importlib

from llm_spark.config import Config
from llm_spark.errors import DataError, UserError
from llm_spark.pipelines.account import Account
from llm_spark.tables.warehouse import Warehouse


def run_stage(name: str, warehouse: Warehouse, config: Config, **options: bool | str) -> Account:
    """Run one stage and close its account: logged, and recorded in `runs` unless there was nothing to do. `options` are the stage's own."""
    account = Account(name)
    # Imported when it runs: torch takes seconds to load, and only three stages need it.
    stage = getattr(importlib.import_module(f"llm_spark.pipelines.{name}"), name)
    try:
        stage(warehouse, config, account, **options)
    except UserError:
        account.record_checks(warehouse)
        raise
    account.close(warehouse)
    if account.refusal:
        raise DataError(account.refusal)
    return account
