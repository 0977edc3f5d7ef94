"""The registry in its table: atomic moves, of which one wins, and what is refused in one line."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import types as t

from llm_spark.config import load
from llm_spark.errors import DataError, UserError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry import commands
from llm_spark.pipelines.registry.aliases import as_challenger, as_refused, change, read_models
from llm_spark.pipelines.registry.commands import run_action
from llm_spark.pipelines.registry.promotion import decide_promotion, was_evaluated
from llm_spark.pipelines.registry.serving import champion, evaluated_models
from llm_spark.schemas import EVALUATION, MODELS, SEQUENCES
from llm_spark.tables.warehouse import Warehouse
from tests.pipelines.models import START, model, promote_in_turn, save_artifact, save_sequences, save_token_tables


def aliases(warehouse: Warehouse) -> dict[str, str]:
    return {model.model_id: model.alias for model in read_models(warehouse).rows}


@pytest.fixture(scope="module")
def three(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Models a, b and c, each promoted after the one before; only read by the tests that share it, or put back."""
    made = Warehouse(spark, str(tmp_path_factory.mktemp("registry") / "warehouse"))
    save_token_tables(made)
    for model_id in "abc":
        save_artifact(made, model_id)
    promote_in_turn(made, model("a"), model("b", 1), model("c", 2))
    return made


@pytest.mark.parametrize("guarded_by", ["the lock", "Delta's turns alone"])
def test_of_two_promotions_at_once_one_wins_and_the_other_says_who_did(
    three: Warehouse, monkeypatch: pytest.MonkeyPatch, guarded_by: str
) -> None:
    run_action(three, "promote", ["c"])
    version = three.version(MODELS)
    both = threading.Barrier(2)

    def together(real: Callable) -> Callable:
        met = threading.local()

        def call(*arguments: object) -> object:
            if not getattr(met, "already", False):
                met.already = True
                both.wait(timeout=60)
            return real(*arguments)

        return call

    if guarded_by == "the lock":
        # Both have decided upon champion c before either moves.
        monkeypatch.setattr(commands, "change", together(change))
    else:
        # As on an object store: both have read the table, and made their rows of it, before either writes.
        monkeypatch.setattr(Warehouse, "locked", lambda self, table: contextlib.nullcontext())
        monkeypatch.setattr(Warehouse, "replace_in_turn", together(Warehouse.replace_in_turn))
    lines: dict[str, str] = {}

    def promote(model_id: str) -> None:
        try:
            run_action(three, "promote", [model_id])
            lines[model_id] = ""
        except UserError as error:
            lines[model_id] = str(error)

    threads = [threading.Thread(target=promote, args=(model_id,)) for model_id in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    (winner,) = (model_id for model_id in lines if not lines[model_id])
    (loser,) = (model_id for model_id in lines if lines[model_id])
    assert lines[loser].startswith(f"model {winner} became champion meanwhile, by another run")
    assert "\n" not in lines[loser]
    assert aliases(three) == {"a": "archived", "b": "archived", "c": "archived", winner: "champion"}
    assert three.version(MODELS) == version + 1, "one commit moved all rows"


def test_a_table_of_an_earlier_version_is_shown_rolled_back_and_gets_the_new_columns(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    earlier = replace(MODELS, schema=t.StructType(MODELS.schema.fields[:8]))
    rows = [
        ("a", START, "{}", "{}", "{}", "models/a", "archived", "followed by b"),
        ("b", START, '{"train": {"seed": 2}}', "{}", "{}", "models/b", "champion", "newest trained model"),
    ]
    warehouse.append(earlier, spark.createDataFrame(rows, earlier.schema).coalesce(1), "rows of an earlier version")
    save_artifact(warehouse, "a")
    save_artifact(warehouse, "b")
    assert champion(warehouse).model_id == "b"
    run_action(warehouse, "compare", ["a"])
    printed = capsys.readouterr().out
    assert "train.seed" in printed
    assert "followed by b" in printed
    run_action(warehouse, "rollback", [], "b sells nothing")
    assert champion(warehouse).model_id == "a"
    assert warehouse.read(MODELS).columns == MODELS.schema.names
    run_action(warehouse, "show", ["a"])
    assert "rolled back from b: b sells nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match="before champion a there was none to go back to"):
        run_action(warehouse, "rollback", [])
    run_action(warehouse, "list", [])
    listed = capsys.readouterr().out
    assert listed.index(" a ") < listed.index(" b "), "the champion comes first"
    assert "rolled back to a" in listed


def test_what_cannot_score_is_not_promoted(three: Warehouse) -> None:
    before = three.version(MODELS)
    with pytest.raises(UserError, match="no model 'bb': the nearest is 'b'"):
        run_action(three, "promote", ["bb"])
    other = next(model_id for model_id, alias in aliases(three).items() if alias == "archived")
    weights = Path(three.model_path(other)) / "weights.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"model {other} cannot score: .* is damaged: weights.safetensors"):
        run_action(three, "promote", [other])
    weights.write_bytes(kept)
    manifest = weights.with_name("manifest.json")
    manifest.rename(weights.with_name("aside"))
    with pytest.raises(UserError, match=rf"model {other} cannot score: no model at"):
        run_action(three, "promote", [other])
    weights.with_name("aside").rename(manifest)
    assert three.version(MODELS) == before


def test_without_a_champion_the_line_says_what_to_do(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    with pytest.raises(UserError, match="no model 'm', nor any other: run `llm-spark train`"):
        run_action(warehouse, "promote", ["m"])
    save_artifact(warehouse, "m")
    change(warehouse, lambda models: as_challenger(models, model("m"), START, "trained"))
    assert {name: each.model_id for name, each in evaluated_models(warehouse).items()} == {"model": "m"}
    with pytest.raises(
        DataError, match=r"m waits for the gate: run `llm-spark evaluate`; `llm-spark models promote m`"
    ):
        champion(warehouse)
    with pytest.raises(UserError, match="no model is champion, so there is none to go back from"):
        run_action(warehouse, "rollback", [])
    change(warehouse, lambda models: as_refused(models, models.find("m"), START, "refused: it is worse"))
    with pytest.raises(DataError, match=r"no model has passed the gate: m was refused: .*`llm-spark models promote m`"):
        champion(warehouse)
    run_action(warehouse, "promote", ["m"], "better than none")
    assert {name: each.model_id for name, each in evaluated_models(warehouse).items()} == {"model": "m"}
    assert read_models(warehouse).find("m").reason == "promoted by hand: better than none"
    # Rows that somebody else damaged stop every move, by name.
    warehouse.append(MODELS, warehouse.read(MODELS), "the same row once more")
    with pytest.raises(UserError, match="the table models is damaged: m, m are all champion"):
        champion(warehouse)
    with pytest.raises(UserError, match="the table models is damaged: model m has two rows"):
        change(warehouse, lambda models: models)


def test_a_challenger_that_foretells_outcomes_alone_does_not_follow_one_that_recommends(three: Warehouse) -> None:
    outcome = {"name": "returns", "within_days": 5.0, "event_types": [], "kind": "event", "weight": 1.0}
    alone = replace(
        model("outcomes", 9), config=json.dumps({"model": {"next_item_weight": 0.0, "outcomes": [outcome]}})
    )
    save_artifact(three, "outcomes")
    three.append(SEQUENCES, three.spark.createDataFrame([], SEQUENCES.schema), "nobody's")
    former = champion(three).model_id
    change(three, lambda models: as_challenger(models, alone, START, "trained"))
    figures = {"model_id": "outcomes", "recommender": "model", "against": "rfm_regression", "slice": "all"}
    figures |= {"name": "returns.auc", "value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "num_examples": 500}
    rows = [tuple(figures.get(name) for name in EVALUATION.schema.names)]
    measured = {"models": {"model": "outcomes", "champion": former}}
    three.replace_where(EVALUATION, three.spark.createDataFrame(rows, EVALUATION.schema), "true", measured)
    account = Account("evaluate")
    decide_promotion(three, load(None, [f"warehouse={three.root}"]), account)
    assert f"it foretells outcomes alone, and champion {former} next items too" in account.refusal
    assert champion(three).model_id == former
    (kept,) = read_models(three).find("outcomes").json("metrics")["gate"]["outcomes"]
    assert kept["over_regression"] == {"value": 0.2, "low": 0.1, "high": 0.3, "num_positions": 500}


RETURNS = {"name": "returns", "within_days": 5.0, "event_types": [], "kind": "probability", "weight": 1.0}
SPEND = RETURNS | {"name": "spend", "kind": "amount"}


def challenged(
    spark: SparkSession, folder: Path, outcomes: list[dict[str, object]], origin: dict[str, object], alone: bool = False
) -> Warehouse:
    """Champion old, who foretells `returns`, and challenger new, who beats popularity and was not measured beside it."""
    warehouse = Warehouse(spark, str(folder / "warehouse"))
    save_token_tables(warehouse)
    save_sequences(warehouse)
    for name, foretold in (("old", [RETURNS]), ("new", outcomes)):
        settings = {"outcomes": foretold, "next_item_weight": 0.0 if alone else 1.0}
        save_artifact(warehouse, name)
        row = replace(model(name), config=json.dumps({"model": settings}))
        if name == "old":
            promote_in_turn(warehouse, row)
        else:
            change(warehouse, lambda models, row=row: as_challenger(models, row, START, "trained"))
    figures = {"model_id": "new", "recommender": "model", "against": "popularity", "slice": "all", "name": "recall@20"}
    figures |= {"value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "num_examples": 500}
    rows = [tuple(figures.get(name) for name in EVALUATION.schema.names)]
    measured = {"models": {"model": "new", "champion": "old"}, **origin}
    warehouse.replace_where(EVALUATION, spark.createDataFrame(rows, EVALUATION.schema), "true", measured)
    return warehouse


def decided(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> Account:
    """The gate as it is of certified sequences and a challenger whose ranks all finished."""
    monkeypatch.setattr("llm_spark.pipelines.registry.promotion.require_certificate", lambda _: None)
    finished = {"ranks": [{"rank": 0, "status": "finished"}]}, ""
    monkeypatch.setattr("llm_spark.pipelines.registry.promotion.read_manifest", lambda _: finished)
    account = Account("evaluate", nothing_to_do="it was measured before")
    decide_promotion(warehouse, load(None, ["evaluate.baselines=[popularity]"]), account)
    return account


def test_where_the_champion_is_damaged_the_challenger_is_judged_by_all_else(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = challenged(spark, tmp_path, [RETURNS], {"left_out": ["champion"]})
    assert {name: each.model_id for name, each in evaluated_models(warehouse).items()} == {
        "model": "new",
        "champion": "old",
    }
    Path(warehouse.model_path("old"), "weights.safetensors").write_bytes(b"")
    account = decided(warehouse, monkeypatch)
    assert account.refusal == ""
    assert champion(warehouse).model_id == "new"
    reason = read_models(warehouse).find("new").reason
    assert "champion old cannot score any more: the model at" in reason
    assert "is damaged: weights.safetensors" in reason


def test_a_champion_that_can_score_and_cannot_be_compared_stays_and_the_refusal_says_why_and_what_to_do(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = challenged(spark, tmp_path, [RETURNS], {})
    save_sequences(warehouse, split="leave_last_session_out", validation_until=None)
    account = decided(warehouse, monkeypatch)
    assert (
        "model new is refused: it could not be compared with champion old: the test sequences are v2" in account.refusal
    )
    assert "give sequences.split=time" in account.refusal
    assert "`llm-spark models promote new`" in account.refusal
    assert champion(warehouse).model_id == "old"


def test_where_the_lists_of_outcomes_differ_they_are_not_held_against_a_model_of_outcomes_alone_either(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = challenged(spark, tmp_path, [SPEND], {"failed_regressions": ["spend"]}, alone=True)
    account = decided(warehouse, monkeypatch)
    assert account.refusal == (
        "model new waits: its accuracy (less squared error) of 'spend' could not be compared with a regression's; "
        "`llm-spark evaluate` tries a regression that failed again"
    )
    rows = [{"against": None, "recommender": "rfm_regression", "value": 2.0}]
    rows += [{"against": "rfm_regression", "recommender": "model", "value": -1.0, "ci_low": -1.5, "ci_high": -0.5}]
    told = [
        row | {"model_id": "new", "slice": "all", "name": "spend.squared_error_log", "num_examples": 9} for row in rows
    ]
    frame = spark.createDataFrame(
        [tuple(row.get(name) for name in EVALUATION.schema.names) for row in told], EVALUATION.schema
    )
    warehouse.replace_where(EVALUATION, frame, "true", {"models": {"model": "new", "champion": "old"}})
    assert decided(warehouse, monkeypatch).refusal == ""
    assert (
        "champion old foretells another list of outcomes, so that they are not compared; it alone foretells 'returns' within 5 days (warning)"
        in read_models(warehouse).find("new").reason
    )


def test_an_evaluation_on_a_table_that_was_made_anew_since_is_another(spark: SparkSession, tmp_path: Path) -> None:
    origin = {"models": {"model": "new", "champion": "old"}, "left_out": []}
    warehouse = challenged(spark, tmp_path, [RETURNS], {"left_out": [], "sequences_id": "a"})
    assert was_evaluated(warehouse, origin | {"sequences_id": "a"})
    assert not was_evaluated(warehouse, origin | {"sequences_id": "b"})
    warehouse.replace_where(EVALUATION, warehouse.read(EVALUATION).localCheckpoint(), "true", origin)
    assert was_evaluated(warehouse, origin | {"sequences_id": "b"}), "by an earlier version of this program"


def test_an_evaluation_that_left_the_champion_out_is_not_one_beside_it(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = challenged(spark, tmp_path, [RETURNS], {"left_out": ["champion"]})
    both = {"models": {"model": "new", "champion": "old"}}
    assert was_evaluated(warehouse, both | {"left_out": ["champion"]})
    assert not was_evaluated(warehouse, both | {"left_out": []})
    assert was_evaluated(warehouse, {"models": {"model": "new"}, "left_out": []}), "promoted since"
