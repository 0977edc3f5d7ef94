"""report: the night's account, quality, training, evaluation, drift, registry and example users -> one HTML page."""

from __future__ import annotations

from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.files import read_file, write_file
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.report_rows import (
    checks_of,
    drift_history,
    estimates_of,
    evaluated_ids,
    example_users,
    measurements_of,
    newest_runs,
    registered_models,
)
from llm_spark.report import Report, page
from llm_spark.schemas import DATA_QUALITY, EVALUATION, MODELS, PREDICTIONS, RUNS, TRAINING_METRICS
from llm_spark.tables.warehouse import Warehouse

_SOURCES = (RUNS, DATA_QUALITY, TRAINING_METRICS, EVALUATION, MODELS, PREDICTIONS)


def report(warehouse: Warehouse, config: Config, account: Account, output: str = "") -> None:
    """Write the page to `output`, or where that is empty to <warehouse>/reports/report-<as_of, or the day of the newest run>.html. Under as_of it
    tells of the newest runs that were of that day or an earlier one, and shows users as they were scored then.

    The same tables give the same bytes, so that a page that is there already is nothing to do. UserError where no table is there yet, or the
    file cannot be written.
    """
    found = [table for table in _SOURCES if warehouse.exists(table)]
    if not found:
        raise UserError(f"nothing has run in the warehouse '{warehouse.root}' yet: run `llm-spark ingest` first")
    with progress("report: tables"):
        night = night_of(warehouse, config)
    path = output or f"{warehouse.root}/reports/report-{config.as_of or night.date or 'undated'}.html"
    with progress("report: page"):
        content = page(night).encode()
    if _read(path) == content:
        account.nothing_to_do = f"'{path}' tells of these tables already"
        return
    account.begin(f"write '{path}'")
    _write(path, content)
    account.rows_in = {
        "runs": len(night.runs),
        "checks": len(night.checks) + night.num_checks_left_out,
        "figures": len(night.estimates),
        "models": night.num_models,
    }
    account.rows_out = {"pages": 1, "users_shown": len(night.users)}
    account.read = {table.name: warehouse.version(table) for table in found}
    account.remarks.append(f"page '{path}'")


def night_of(warehouse: Warehouse, config: Config) -> Report:
    """All that the page shows, from bounded queries: no table is gathered whole but the registry."""
    runs = newest_runs(warehouse, config.as_of)
    checks, num_left_out = checks_of(warehouse, [run.run_id for run in runs])
    models, num_models = registered_models(warehouse)
    model_id, champion_id = evaluated_ids(warehouse)
    if model_id is None and models:
        model_id = max(models, key=lambda model: (model.trained_at is not None, model.trained_at)).model_id
    metric = config.gate.chosen_metric(config.evaluate.ks)
    return Report(
        runs=runs,
        checks=checks,
        num_checks_left_out=num_left_out,
        drift_history=drift_history(warehouse),
        model_id=model_id,
        champion_id=champion_id,
        metric=metric,
        measurements=measurements_of(warehouse, model_id),
        estimates=estimates_of(warehouse, model_id, metric),
        models=models,
        num_models=num_models,
        users=example_users(warehouse, config.report.num_users, config.as_of),
        num_users_asked=config.report.num_users,
    )


def _read(path: str) -> bytes | None:
    try:
        return read_file(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write(path: str, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: str, error: OSError) -> UserError:
    why = error.strerror or " ".join(str(error).split())
    return UserError(f"the report cannot be written to '{path}': {why}; give another file with --output")
