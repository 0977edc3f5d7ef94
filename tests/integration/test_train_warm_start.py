"""Training that begins with the champion (`train.warm_start`)."""

from __future__ import annotations

import json

import pytest
import torch

from llm_spark.errors import UserError
from llm_spark.model.artifact import load_artifact
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import MODELS
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain

WARM = ("train.warm_start=true", "train.num_epochs=1", "train.learning_rate=0.000001")


def test_a_model_begins_with_the_champion_and_names_it(chain: Chain, copied: Warehouse) -> None:
    former = champion(copied)
    account = run_stage("train", copied, chain.with_settings(*WARM))
    assert f"begins with the weights of {former.model_id}" in account.remarks
    new = champion(copied)
    assert new.model_id != former.model_id
    row = copied.read(MODELS).where(f"model_id = '{new.model_id}'").first()
    assert json.loads(row["config"])["parent"] == former.model_id
    assert load_artifact(new.path).tables["parent"] == former.model_id
    weights = load_artifact(new.path).model.state_dict()
    # Steps so small leave them where they were.
    for name, tensor in load_artifact(former.path).model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)
    assert run_stage("train", copied, chain.with_settings(*WARM)).nothing_to_do, "though the champion is another now"


def test_a_champion_of_another_shape_is_passed_over_by_name(chain: Chain, copied: Warehouse) -> None:
    account = run_stage("train", copied, chain.with_settings(*WARM, "model.dense_size=20"))
    assert any("from scratch: champion" in r and "model.dense_size is 20 and was 24" in r for r in account.remarks)
    assert load_artifact(champion(copied).path).tables["parent"] is None


def test_tracking_without_the_package_is_refused_before_anything_is_done(
    chain: Chain, copied: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.track is 'mlflow'"):
        run_stage("train", copied, chain.with_settings("train.track=mlflow", "train.seed=5"))
