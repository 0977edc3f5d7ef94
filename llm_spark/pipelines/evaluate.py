"""evaluate: the model on the test sequences, beside the baselines -> evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.evaluation.estimates import MODEL, Estimate, Measured
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.baselines import measured_baselines
from llm_spark.pipelines.certificate import require_certificate
from llm_spark.pipelines.evaluation_window import EvaluationWindow, open_window, require_testable
from llm_spark.pipelines.outcome_evaluation import Figures, outcome_figures, outcome_lines
from llm_spark.pipelines.outcomes import outcomes_note, require_labels
from llm_spark.pipelines.registry.aliases import Model, read_models
from llm_spark.pipelines.registry.fitness import why_it_cannot_be_compared
from llm_spark.pipelines.registry.promotion import FAILED_REGRESSIONS, decide_promotion, was_evaluated
from llm_spark.pipelines.registry.serving import Champion, evaluated_models, loaded
from llm_spark.pipelines.registry.token_tables import SEQUENCES_ID, sequences_id
from llm_spark.schemas import EVALUATION, SEQUENCES
from llm_spark.tables.warehouse import Warehouse


def evaluate(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Measure the challenger, or without one the champion, and let the gate decide upon the challenger.

    Also where there is nothing to measure: a run that was killed in between has left the challenger undecided.
    """
    _measure(warehouse, config, account)
    # A dry run ends where something is to be measured, or here.
    if account.nothing_to_do and config.gate.enabled and read_models(warehouse).challenger is not None:
        account.begin("let the gate decide on the challenger that was measured")
    decide_promotion(warehouse, config, account)


def _measure(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Rank every test position against the whole vocabulary by each recommender, and write their metrics and how far they are apart.

    DataError where the sequences have no certificate that passes, or the model may have seen what would test it.
    """
    rows_of = evaluated_models(warehouse)
    model = loaded(warehouse, rows_of[MODEL])
    model_id = model.model_id
    others = comparable_models(warehouse, rows_of, account)
    version = warehouse.version(SEQUENCES)
    origin = {
        "models": {name: row.model_id for name, row in rows_of.items()},
        "left_out": [name for name in rows_of if name != MODEL and name not in others],
        "sequences": warehouse.data_version(SEQUENCES, version),
        SEQUENCES_ID: sequences_id(warehouse),
        "baselines": list(config.evaluate.baselines),
        "ks": list(config.evaluate.ks),
        "num_replicates": config.evaluate.num_replicates,
        "diversity_attribute": config.evaluate.diversity_attribute,
    }
    if was_evaluated(warehouse, origin):
        account.nothing_to_do = f"model {model_id} was evaluated on sequences v{version} already"
        return
    account.begin(f"measure model {model_id} on sequences v{version}")
    require_certificate(warehouse)
    require_testable(warehouse, model)
    models = {MODEL: model, **others}
    with progress("evaluate: test positions"):
        window = open_window(warehouse, config, list(models.values()))
    measured = {}
    for name, model in models.items():
        with progress(f"evaluate: {name}"):
            measured[name] = window.measured_model(model)
    measured |= measured_baselines(window, config.evaluate.baselines, account)
    # What failed is tried again by the next run.
    origin["baselines"] = [name for name in config.evaluate.baselines if name in measured]
    found = figures(measured)
    told = evaluation_lines(window, found)
    of_outcomes, failed = measured_outcomes(warehouse, window, models, config.evaluate.batch_rows, account)
    if failed:
        origin[FAILED_REGRESSIONS] = failed
    told += outcome_lines(of_outcomes)
    for key, estimates in of_outcomes.items():
        found.setdefault(key, []).extend(estimates)
    rows = [
        (model_id, recommender, against, *astuple(estimate), window.version)
        for (recommender, against), estimates in found.items()
        for estimate in estimates
    ]
    with progress("evaluate: table"):
        evaluation = warehouse.spark.createDataFrame(rows, EVALUATION.schema).coalesce(1)
        warehouse.replace_where(EVALUATION, evaluation, f"model_id = '{model_id}'", origin)
    account.rows_in = {"test_sequences": window.num_sequences}
    account.rows_out = {"predicted_positions": window.num_positions, "figures": len(rows)}
    account.read = {SEQUENCES.name: window.version}
    account.wrote(warehouse, EVALUATION)
    account.remarks += told


def comparable_models(warehouse: Warehouse, models: Mapping[str, Model], account: Account) -> dict[str, Champion]:
    """Those to measure beside the evaluated one, without such as cannot be measured here, which a remark names."""
    comparable = {}
    for name, model in models.items():
        if name == MODEL:
            continue
        if why_not := why_it_cannot_be_compared(warehouse, model):
            account.remarks.append(f"the {name} cannot be compared with: {why_not}")
        else:
            comparable[name] = loaded(warehouse, model)
    return comparable


def measured_outcomes(
    warehouse: Warehouse, window: EvaluationWindow, models: Mapping[str, Champion], batch_rows: int, account: Account
) -> tuple[Figures, list[str]]:
    """How well the model foretells its outcomes, beside others that foretell the same, and those of which the regression failed; nothing, and a
    remark, where the sequences hold the labels of others."""
    model = models[MODEL]
    if not model.config.outcomes:
        return {}, []
    made_from = (warehouse.origin(SEQUENCES) or {})["made_from"]
    try:
        require_labels(made_from, model.config)
    except DataError as error:
        account.remarks.append(f"its outcomes are not judged: {error}")
        return {}, []
    same = outcomes_note(model.config.outcomes)
    others = {
        name: other for name, other in models.items() if name != MODEL and outcomes_note(other.config.outcomes) == same
    }
    with progress("evaluate: outcomes"):
        return outcome_figures(model, others, window.training, window.asked, batch_rows, account)


def figures(measured: Mapping[str, Measured]) -> dict[tuple[str, str | None], list[Estimate]]:
    """(recommender, against) -> figures: each recommender's own, and the evaluated model's less those of every other, paired."""
    found: dict[tuple[str, str | None], list[Estimate]] = {
        (name, None): of.estimates() for name, of in measured.items()
    }
    others = [name for name in measured if name != MODEL]
    return found | {(MODEL, name): measured[MODEL].less(measured[name]) for name in others}


def evaluation_lines(window: EvaluationWindow, found: Mapping[tuple[str, str | None], list[Estimate]]) -> list[str]:
    """A table of the figures over all positions at the largest k, then what to make of it."""
    names = [f"{metric}@{window.rules.list_length}" for metric in ("recall", "mrr", "ndcg")]
    cells: dict[str, dict[str, str]] = {}
    for (recommender, against), estimates in found.items():
        sign = "" if against is None else "+"
        label = recommender if against is None else f"{recommender} - {against}"
        cells[label] = {
            e.name: f"{e.value:{sign}.3f}"
            + ("" if e.ci_low is None else f" [{e.ci_low:{sign}.3f}, {e.ci_high:{sign}.3f}]")
            for e in estimates
            if e.slice == "all" and e.name in names
        }
    width = max(map(len, cells))
    columns = [name for name in names if any(name in row for row in cells.values())]
    widths = {name: max(len(name), *(len(row.get(name, "-")) for row in cells.values())) for name in columns}
    lines = [
        f"{window.num_positions:,} test positions of {window.num_users:,} user{'s' if window.num_users > 1 else ''}, each ranked among all "
        f"{window.rules.items.num_items:,} items",
        " ".join([" " * width, *(f" {name:<{widths[name]}}" for name in columns)]).rstrip(),
    ]
    for label, row in cells.items():
        told = (f" {row.get(name, '-'):<{widths[name]}}" for name in columns)
        lines.append(" ".join([f"{label:<{width}}", *told]).rstrip())
    if window.num_users == 1:
        lines.append("all positions are of one user: no interval can be given, for users are what an interval is about")
    else:
        lines.append("in brackets 95 % intervals over users; a difference whose interval holds 0 may be chance")
    return lines
