"""The gate at the end of evaluate: whether the challenger takes the champion's place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.config.outcomes import AMOUNT
from llm_spark.errors import DataError, UserError
from llm_spark.evaluation.estimates import MODEL
from llm_spark.evaluation.gate import Decision, Evidence, Measured, MeasuredOutcome, decide
from llm_spark.evaluation.outcomes import RFM
from llm_spark.model.artifact import read_manifest
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.certificate import require_certificate
from llm_spark.pipelines.registry.aliases import (
    CHALLENGER,
    CHAMPION,
    GATE,
    Model,
    Models,
    as_champion,
    as_refused,
    change,
    read_models,
    require_unchanged,
)
from llm_spark.pipelines.registry.fitness import why_it_cannot_be_compared, why_it_cannot_score
from llm_spark.pipelines.registry.token_tables import SEQUENCES_ID
from llm_spark.schemas import EVALUATION, MODELS
from llm_spark.tables.warehouse import Warehouse
from llm_spark.training.records import FINISHED

FAILED_REGRESSIONS = "failed_regressions"
"""Under this name the evaluation's origin notes outcomes whose regression is to be tried again; where none failed, nothing."""


def was_evaluated(warehouse: Warehouse, origin: Mapping[str, Any]) -> bool:
    """Whether the evaluation that is there is of these models under this `origin`; it may have measured others beside them, as a model that
    was promoted since was measured beside the former champion, or have left these out."""
    note = warehouse.origin(EVALUATION) or {}
    # Earlier versions did not note which table it was.
    note = {key: value for key, value in origin.items() if key == SEQUENCES_ID} | note
    measured, left_out = note.get("models", {}), note.get("left_out", [])
    of_these = {
        "models": {name: measured.get(name) for name in origin["models"]},
        "left_out": [name for name in left_out if name in origin["models"]],
    }
    return note | of_these == origin


def decide_promotion(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Promote or archive the challenger by what evaluate has measured of it; nothing where no model waits.

    A refusal is written into the model's row and makes the stage end with exit code 3; the champion goes on scoring. So it does where a
    baseline or an outcome could not be measured, and the model waits.
    """
    models = read_models(warehouse)
    challenger = models.challenger
    if challenger is None:
        return
    if not config.gate.enabled:
        by_hand = f"`llm-spark models promote {challenger.model_id}`"
        account.remarks.append(f"challenger {challenger.model_id} stays one, for gate.enabled is false: {by_hand}")
        return
    evidence = _evidence(warehouse, config, models, challenger)
    decision = decide(evidence, config.gate)
    if not decision.is_final:
        account.nothing_to_do = ""
        account.refusal = f"model {challenger.model_id} waits: {'; '.join([*decision.sentences, *decision.waits_for])}"
        return
    judged = replace(challenger, metrics=json.dumps(challenger.json("metrics") | {"gate": _kept(evidence)}))
    reason = f"{'promoted' if decision.promoted else 'refused'}: {'; '.join(decision.sentences)}"
    change(warehouse, lambda now: _judged(now, models, judged, decision, reason))
    account.nothing_to_do = ""
    account.wrote(warehouse, MODELS)
    if decision.promoted:
        account.remarks.append(f"model {challenger.model_id} is champion: {'; '.join(decision.sentences)}")
        return
    goes_on = f"champion {evidence.champion_id} goes on scoring" if models.champion else "no model is champion"
    if evidence.champion_cannot_score:
        goes_on = f"champion {evidence.champion_id} cannot score any more: {evidence.champion_cannot_score}"
    by_hand = f"`llm-spark models promote {challenger.model_id}` overrules the gate"
    account.refusal = f"model {challenger.model_id} is {reason}; {goes_on}; {by_hand}"


def _judged(now: Models, decided_on: Models, judged: Model, decision: Decision, reason: str) -> Models:
    require_unchanged(now, decided_on)
    alias = now.find(judged.model_id).alias
    if alias != CHALLENGER:
        raise UserError(f"model {judged.model_id} became {alias} meanwhile, by another run: look at `llm-spark models`")
    at = now.moment()
    if decision.promoted:
        return as_champion(now, judged, at, GATE, reason)
    return as_refused(now, judged, at, reason)


def _evidence(warehouse: Warehouse, config: Config, models: Models, challenger: Model) -> Evidence:
    champion = models.champion
    _require_measured(warehouse, models, challenger)
    metric = config.gate.chosen_metric(config.evaluate.ks)
    evaluation = warehouse.read_or_empty(EVALUATION).where(
        (F.col("model_id") == challenger.model_id) & (F.col("slice") == "all")
    )
    over = _differences(evaluation, metric)
    over_champion = over.pop(CHAMPION, None)
    cannot_score, not_compared, theirs = "", "", []
    if champion is not None:
        cannot_score = why_it_cannot_score(warehouse, champion)
        if over_champion is None and not cannot_score:
            not_compared = why_it_cannot_be_compared(warehouse, champion)
        theirs = _outcomes_of(champion)
    ours = _outcomes_of(challenger)
    manifest, _ = read_manifest(warehouse.model_path(challenger.model_id))
    return Evidence(
        metric=metric,
        champion_id=champion.model_id if champion is not None else None,
        certificate_objection=_certificate_objection(warehouse),
        num_ranks=int(challenger.json("config").get("train", {}).get("num_ranks", 1)),
        finished_ranks=tuple(record["rank"] for record in manifest.get("ranks", ()) if record["status"] == FINISHED),
        over_champion=over_champion,
        over_baselines=over,
        expected_baselines=tuple(config.evaluate.baselines),
        foretells_items=_foretells_items(challenger),
        champion_cannot_score=cannot_score,
        champion_not_compared=not_compared,
        champion_foretells_items=champion is None or _foretells_items(champion),
        outcomes=_outcomes(warehouse, evaluation, ours),
        same_outcomes=ours == theirs,
        outcomes_of_champion_alone=tuple(_named(outcome) for outcome in theirs if outcome not in ours),
    )


def _require_measured(warehouse: Warehouse, models: Models, challenger: Model) -> None:
    """UserError where the evaluation that is there is of another challenger, or beside another champion."""
    measured = (warehouse.origin(EVALUATION) or {}).get("models", {})
    champion_id = models.champion.model_id if models.champion is not None else None
    if measured.get(MODEL) != challenger.model_id or measured.get(CHAMPION) != champion_id:
        raise UserError(
            f"challenger {challenger.model_id} was not measured beside the champion of now, for another run moved one of "
            "them meanwhile: run `llm-spark evaluate` again"
        )


def _certificate_objection(warehouse: Warehouse) -> str:
    try:
        require_certificate(warehouse)
    except DataError as error:
        return str(error)
    return ""


def _differences(evaluation: DataFrame, metric: str) -> dict[str, Measured]:
    """The model's metric over all test positions less that of each other recommender that it was compared with."""
    of_model = (F.col("recommender") == MODEL) & F.col("against").isNotNull()
    rows = evaluation.where(of_model & (F.col("name") == metric)).collect()
    return {
        row["against"]: Measured(row["value"], row["ci_low"], row["ci_high"], row["num_examples"])
        for row in rows
        if row["value"] is not None
    }


def _foretells_items(model: Model) -> bool:
    return bool(model.json("config").get("model", {}).get("next_item_weight", 1.0))


def _outcomes(
    warehouse: Warehouse, evaluation: DataFrame, outcomes: Sequence[Mapping[str, Any]]
) -> tuple[MeasuredOutcome, ...]:
    """Of every outcome that the challenger foretells, how much better it does so than the champion and the regression."""
    failed = (warehouse.origin(EVALUATION) or {}).get(FAILED_REGRESSIONS, [])
    return tuple(
        MeasuredOutcome(
            f"{'accuracy (less squared error)' if _is_amount(outcome) else 'AUC'} of '{outcome['name']}'",
            over_champion=(over := _outcome_gains(evaluation, outcome)).get(CHAMPION),
            over_regression=over.get(RFM),
            regression_failed=outcome["name"] in failed,
        )
        for outcome in outcomes
    )


def _named(outcome: Mapping[str, Any]) -> str:
    return f"'{outcome['name']}' within {outcome['within_days']:g} days"


def _is_amount(outcome: Mapping[str, Any]) -> bool:
    return outcome.get("kind") == AMOUNT


def _outcomes_of(model: Model) -> list[dict[str, Any]]:
    """What each is, without what it weighs in training."""
    outcomes = model.json("config").get("model", {}).get("outcomes", [])
    return [{key: value for key, value in outcome.items() if key != "weight"} for outcome in outcomes]


def _outcome_gains(evaluation: DataFrame, outcome: Mapping[str, Any]) -> dict[str, Measured]:
    """As MeasuredOutcome has them, by whom it was compared with."""
    if not _is_amount(outcome):
        return _differences(evaluation, f"{outcome['name']}.auc")
    error = f"{outcome['name']}.squared_error_log"
    own = evaluation.where((F.col("name") == error) & F.col("against").isNull() & (F.col("value") > 0)).collect()
    errors = {row["recommender"]: row["value"] for row in own}
    return {
        name: less.as_gain(errors[name]) for name, less in _differences(evaluation, error).items() if name in errors
    }


def _kept(evidence: Evidence) -> dict[str, Any]:
    """What the row keeps of what the gate decided by: the evaluation of the next model takes the place of this one's."""
    over = {"champion": evidence.over_champion, **evidence.over_baselines}
    return {
        "metric": evidence.metric,
        "champion": evidence.champion_id,
        "less_that_of": {name: asdict(measured) for name, measured in over.items() if measured is not None},
        "outcomes": [asdict(outcome) for outcome in evidence.outcomes],
    }
