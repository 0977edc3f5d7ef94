"""train, evaluate, the gate, score: who scores, and what a refusal leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry.aliases import Models, as_challenger, as_refused, change, read_models
from llm_spark.pipelines.registry.commands import run_action
from llm_spark.pipelines.registry.promotion import decide_promotion
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, MODELS, PREDICTIONS
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain

BASELINES = ("popularity", "session_popularity", "recency", "markov", "vsknn", "item_knn")
METRIC = "recall@20"


@pytest.fixture(scope="module")
def copied(chain: Chain, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """The chain's warehouse, with its champion, to change at will."""
    folder = tmp_path_factory.mktemp("gate") / "copy"
    shutil.copytree(chain.warehouse.root, folder)
    return Warehouse(spark, str(folder))


def gated(chain: Chain, *overrides: str) -> Config:
    """One step of training: a model that is far from the champion's six epochs."""
    return chain.with_settings("gate.enabled=true", "train.num_epochs=0.02", "train.seed=5", *overrides)


def scored_by(warehouse: Warehouse, config: Config) -> set[str]:
    run_stage("score", warehouse, config)
    newest = warehouse.read(PREDICTIONS).orderBy("scored_at", ascending=False).first()
    return {newest["model_id"]}


@pytest.fixture(scope="module")
def refused(chain: Chain, copied: Warehouse) -> str:
    """The id of a model that was trained, evaluated and refused."""
    former = champion(copied).model_id
    account = run_stage("train", copied, gated(chain))
    assert "it is challenger: `llm-spark evaluate` decides whether it scores" in account.remarks
    assert champion(copied).model_id == former
    waiting = read_models(copied).challenger
    assert "waits for `llm-spark evaluate`" in run_stage("train", copied, gated(chain)).nothing_to_do
    with pytest.raises(DataError) as refusal:
        run_stage("evaluate", copied, gated(chain))
    line = str(refusal.value)
    assert line.startswith(f"model {waiting.model_id} is refused: ")
    assert f"; champion {former} goes on scoring; `llm-spark models promote {waiting.model_id}`" in line
    return waiting.model_id


def test_a_refused_model_leaves_the_champion_scoring_and_its_reasons_in_the_registry(
    chain: Chain, copied: Warehouse, refused: str
) -> None:
    row = copied.read(MODELS).where(f"model_id = '{refused}'").first()
    assert (row["alias"], row["reason"].split(":")[0]) == ("archived", "refused")
    assert json.loads(row["metrics"])["gate"]["metric"] == METRIC
    assert [(move["alias"], move["cause"]) for move in row["moves"]] == [("challenger", "train"), ("archived", "gate")]
    assert row["code_version"].startswith("0.")
    assert scored_by(copied, gated(chain, "score.k=3")) == {champion(copied).model_id} != {refused}


def test_a_refused_model_is_neither_trained_nor_judged_again(chain: Chain, copied: Warehouse, refused: str) -> None:
    again = run_stage("train", copied, gated(chain)).nothing_to_do
    assert again.startswith(f"model {refused}, trained on this data with these settings, was archived (refused: ")
    assert read_models(copied).challenger is None
    # With nobody waiting, the champion is what is measured.
    run_stage("evaluate", copied, gated(chain))
    assert read_models(copied).champion.model_id == champion(copied).model_id
    assert run_stage("evaluate", copied, gated(chain)).nothing_to_do


def write_leads(
    warehouse: Warehouse,
    model_id: str,
    over_champion: tuple[float, float, float],
    baselines: tuple[str, ...] = BASELINES,
) -> None:
    """The rows that evaluate leaves of a model that beats these baselines, and has this lead over the champion."""
    leads = dict.fromkeys(baselines, (0.1, 0.05, 0.15)) | {"champion": over_champion}
    rows = []
    for against, (value, low, high) in leads.items():
        told = {"model_id": model_id, "recommender": "model", "against": against, "slice": "all", "name": METRIC}
        told |= {"value": value, "ci_low": low, "ci_high": high, "num_examples": 500}
        rows.append(tuple(told.get(name) for name in EVALUATION.schema.names))
    frame = warehouse.spark.createDataFrame(rows, EVALUATION.schema).coalesce(1)
    measured = {"models": {"model": model_id, "champion": champion(warehouse).model_id}}
    warehouse.replace_where(EVALUATION, frame, f"model_id = '{model_id}'", measured)


def test_a_challenger_that_loses_no_more_than_the_margin_is_promoted_and_scores(
    chain: Chain, copied: Warehouse, refused: str
) -> None:
    former = champion(copied).model_id

    def challenge() -> None:
        now = datetime(2026, 1, 1)
        change(copied, lambda models: as_challenger(models, models.find(refused), now, "trained"))

    challenge()
    # As if vsknn had run out of memory: that says nothing against the model.
    write_leads(copied, refused, (-0.004, -0.005, 0.01), ("popularity",))
    account = Account("evaluate", nothing_to_do="it was measured before")
    decide_promotion(copied, gated(chain), account)
    assert account.refusal.startswith(
        f"model {refused} waits: the baseline vsknn was not measured; `llm-spark evaluate`"
    )
    assert read_models(copied).challenger.model_id == refused
    write_leads(copied, refused, (-0.004, -0.02, 0.01))
    # As if one of its ranks had left no record.
    manifest = Path(copied.model_path(refused), "manifest.json")
    written = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(written) | {"ranks": []}))
    account = Account("evaluate")
    decide_promotion(copied, gated(chain), account)
    manifest.write_text(written)
    assert "the completion record of rank 0 is missing" in account.refusal
    assert "a loss of more than 0.01 is not ruled out" in account.refusal
    assert champion(copied).model_id == former
    challenge()
    account = Account("evaluate", nothing_to_do="it was measured before it was killed")
    decide_promotion(copied, gated(chain, "gate.max_loss=0.03"), account)
    assert (account.refusal, account.nothing_to_do) == ("", "")
    assert champion(copied).model_id == refused
    assert scored_by(copied, gated(chain, "score.k=2")) == {refused}
    run_action(copied, "rollback", [])
    assert champion(copied).model_id == former
    assert "was archived (rolled back to" in run_stage("train", copied, gated(chain)).nothing_to_do


def test_where_the_only_model_was_refused_score_says_how_to_promote_it(
    chain: Chain, copied: Warehouse, refused: str
) -> None:
    def none_left(models: Models) -> Models:
        first = as_refused(models, models.champion, datetime(2026, 1, 1), "refused: it is worse")
        return Models(tuple(model for model in first.rows if model.model_id != refused))

    only = champion(copied).model_id
    change(copied, none_left)
    with pytest.raises(DataError, match=rf"no model has passed the gate: {only} was refused: .* models promote {only}"):
        run_stage("score", copied, gated(chain, "score.k=4"))


def test_where_the_champion_is_damaged_evaluate_goes_on_without_it_and_the_next_model_scores(
    chain: Chain, chain_until: Callable[[str], Warehouse]
) -> None:
    warehouse = chain_until("evaluate")
    former = champion(warehouse)
    config = gated(
        chain, "gate.beats_popularity=none", "gate.beats_best_baseline=none", "evaluate.baselines=[popularity]"
    )
    run_stage("train", warehouse, config)
    Path(former.path, "weights.safetensors").write_bytes(b"")
    account = run_stage("evaluate", warehouse, config)
    assert any(remark.startswith("the champion cannot be compared with: the model at") for remark in account.remarks)
    assert warehouse.origin(EVALUATION)["models"]["champion"] == former.model_id
    reason = read_models(warehouse).find(champion(warehouse).model_id).reason
    assert f"champion {former.model_id} cannot score any more: the model at" in reason
    assert run_stage("evaluate", warehouse, config).nothing_to_do
