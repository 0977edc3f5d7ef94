"""The moving average of the weights: its numbers, what it is used for, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm_spark.config import TrainConfig
from llm_spark.errors import UsageError
from llm_spark.model.network import NextEventModel
from llm_spark.training.averaging import WeightAverage
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.loop import FitResult, Trainer
from tests.model.histories import Row, random_rows
from tests.training.sequences import SMALL_MODEL, InMemory

NUM_TOKENS = 12
Weights = dict[str, torch.Tensor]


def one_weight(value: float) -> torch.nn.Module:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor([value]))
    return module


def test_two_steps_worked_by_hand() -> None:
    module = one_weight(11.0)
    average = WeightAverage(module, 0.2)
    module.weight.data.fill_(22.0)
    average.update(1)  # decay 2/11, below 0.2
    assert average.tensors["weight"].item() == pytest.approx(2 / 11 * 11 + 9 / 11 * 22)  # 20
    module.weight.data.fill_(30.0)
    average.update(2)  # 3/12 is above 0.2
    assert average.tensors["weight"].item() == pytest.approx(0.2 * 20 + 0.8 * 30)  # 28


def test_weights_and_average_change_places_and_come_back_to_the_bit_also_after_an_error() -> None:
    module = one_weight(0.1)
    average = WeightAverage(module, 0.9)
    module.weight.data.fill_(0.7)
    held = module.weight
    with pytest.raises(ZeroDivisionError), average.in_place():  # noqa: PT012
        assert module.weight is held
        assert (module.weight.item(), average.tensors["weight"].item()) == pytest.approx((0.1, 0.7))
        _ = 1 / 0
    assert torch.equal(module.weight, torch.tensor([0.7]))
    assert torch.equal(average.tensors["weight"], torch.tensor([0.1]))


def batches(num_rows: int, seed: int) -> list[list[Row]]:
    rows = random_rows(num_rows, NUM_TOKENS, 4, seed=seed)
    return [rows[i : i + 8] for i in range(0, num_rows, 8)]


def followed(source: InMemory, **settings: Any) -> tuple[Trainer, FitResult, list[Weights]]:
    """The trainer after its run, and the weights that its steps began with and ended in."""
    torch.manual_seed(1)
    model = NextEventModel(SMALL_MODEL, NUM_TOKENS, 4)
    config = TrainConfig(**{"num_epochs": 2.0, "learning_rate": 0.05, "warmup_steps": 0, "device": "cpu", **settings})
    weights = [{name: weight.detach().clone() for name, weight in model.named_parameters()}]

    def note(progress: Progress | None) -> None:
        if progress is not None:
            weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})

    trainer = Trainer(model, config, source, Ranks(0, 1, torch.device("cpu")), torch.ones(NUM_TOKENS), note)
    return trainer, trainer.fit(), weights


def averages(weights: list[Weights], decay: float) -> list[Weights]:
    """The average after every step, in double precision."""
    found = [{name: weight.double() for name, weight in weights[0].items()}]
    for step, of_step in enumerate(weights[1:], start=1):
        share = min(decay, (1 + step) / (10 + step))
        found.append(
            {name: share * found[-1][name] + (1 - share) * weight.double() for name, weight in of_step.items()}
        )
    return found


def assert_holds(model: NextEventModel, expected: Weights) -> None:
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


def test_steps_go_on_with_the_weights_and_the_last_average_is_the_model() -> None:
    source = InMemory(batches(32, seed=1))
    trainer, with_average, weights = followed(source, average_decay=0.9)
    plain, without, plain_weights = followed(source)
    assert with_average.losses == without.losses
    for ours, theirs in zip(weights, plain_weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_holds(trainer.model, averages(weights, 0.9)[-1])
    assert_holds(plain.model, weights[-1])


def test_validation_measures_the_average_and_its_best_is_kept_with_a_temperature_of_its_own() -> None:
    source = InMemory(batches(32, seed=1), batches(16, seed=2))
    trainer, result, weights = followed(source, average_decay=0.9, num_epochs=6.0, patience=9)
    of_steps = averages(weights, 0.9)
    losses = {metric.step: metric.value for metric in result.metrics if metric.name == "validation_loss"}
    assert result.best_step < result.num_steps, "the seeds are chosen so that the kept weights are not the last ones"
    assert_holds(trainer.model, of_steps[result.best_step])
    kept_temperature = result.temperature
    for step, loss in losses.items():
        trainer.model.load_state_dict(
            {**trainer.model.state_dict(), **{name: weight.float() for name, weight in of_steps[step].items()}}
        )
        validated = trainer.validate()
        assert validated is not None
        assert validated[0] == pytest.approx(loss, rel=1e-5)
        if step == result.best_step:
            assert trainer._temperature() == pytest.approx(kept_temperature, rel=1e-4)


def test_off_by_default_nothing_is_held() -> None:
    trainer, _, _ = followed(InMemory(batches(8, seed=1)))
    assert trainer._average.tensors == {}


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_no_share_is_refused_by_name(decay: float) -> None:
    with pytest.raises(UsageError, match=r"train\.average_decay"):
        TrainConfig(average_decay=decay)
