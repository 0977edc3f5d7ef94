"""Every kind of head and every loss learns through the loop; the settings reach it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.errors import UsageError
from llm_spark.model.network import NextEventModel
from llm_spark.training.distributed import Ranks
from llm_spark.training.loop import FitResult, Trainer
from tests.model.histories import batch_of
from tests.training.sequences import SMALL_MODEL, InMemory, cyclic_rows

NUM_TOKENS = 12


def fitted(
    model_config: ModelConfig, counts: torch.Tensor | None = None, **settings: object
) -> tuple[NextEventModel, FitResult]:
    batches = [cyclic_rows(8, 10, seed=seed) for seed in range(8)]
    torch.manual_seed(1)
    model = NextEventModel(model_config, NUM_TOKENS, 4)
    config = TrainConfig(**{"num_epochs": 10.0, "learning_rate": 0.01, "warmup_steps": 2, "device": "cpu", **settings})
    counts = torch.ones(NUM_TOKENS) if counts is None else counts
    trainer = Trainer(model, config, InMemory(batches), Ranks(0, 1, torch.device("cpu")), counts)
    return model, trainer.fit()


@pytest.mark.parametrize(("tied", "cosine_scale"), [(True, 0.0), (False, 12.0), (True, 12.0)])
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_a_certain_next_item_is_learnt_by_every_head(tied: bool, cosine_scale: float, loss: str) -> None:
    config = dataclasses.replace(SMALL_MODEL, tied=tied, cosine_scale=cosine_scale)
    model, _ = fitted(config, loss=loss, num_epochs=25.0, num_negatives=128, num_batch_negatives=8)
    contexts, targets = model.forward_states(batch_of(cyclic_rows(20, 10, seed=99)))
    assert (model.logits(contexts).argmax(dim=1) == targets).float().mean() > 0.9


@pytest.mark.parametrize("setting", [{"num_batch_negatives": 4}, {"negative_power": 1.0}])
def test_how_negatives_are_taken_changes_the_first_loss(setting: dict[str, float]) -> None:
    counts = torch.arange(NUM_TOKENS)
    plain, other = (
        fitted(SMALL_MODEL, counts, loss="sampled", num_epochs=0.1, **given)[1].losses[0] for given in ({}, setting)
    )
    assert plain != other


@pytest.mark.parametrize("setting", ["negative_power", "num_batch_negatives"])
def test_settings_of_negatives_below_zero_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=f"train.{setting} is -1"):
        TrainConfig(**{setting: -1})
