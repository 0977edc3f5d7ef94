from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.errors import UserError
from llm_spark.model import calibration
from llm_spark.model.network import NextEventModel
from llm_spark.training.batches import measure
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.loop import FitResult, Trainer, learning_rate
from tests.model.histories import Row, batch_of, random_rows, row
from tests.training.sequences import SMALL_MODEL, InMemory, cyclic_rows

NUM_TOKENS = 12


def in_batches(rows: list[Row], size: int = 8) -> list[list[Row]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def fitted(
    source: InMemory,
    model_config: ModelConfig = SMALL_MODEL,
    progress: list[Progress | None] | None = None,
    **settings: object,
) -> tuple[NextEventModel, FitResult]:
    torch.manual_seed(1)
    model = NextEventModel(model_config, NUM_TOKENS, 4)
    config = TrainConfig(**{"num_epochs": 3.0, "learning_rate": 0.02, "warmup_steps": 2, "device": "cpu", **settings})
    heard = progress.append if progress is not None else lambda p: None
    one_rank = Ranks(0, 1, torch.device("cpu"))
    measured = measure(source.training(0), NUM_TOKENS, one_rank, model_config)
    model.number_input.standardise_by(measured.number_mean_K, measured.number_std_K)
    trainer = Trainer(model, config, source, one_rank, torch.ones(NUM_TOKENS), heard)
    return model, trainer.fit()


def favourites(num_users: int) -> list[Row]:
    """Users who each open every visit with their own one of eight items: only the long-term memory can know the second's."""
    return [row([[2 + user % 8], [2 + user % 8]]) for user in range(num_users)]


def test_memory_learns_what_only_the_past_sessions_tell() -> None:
    source = InMemory(in_batches(favourites(64), 32))
    _, result = fitted(source, num_epochs=60.0)
    assert result.losses[-1] < 0.1


def test_without_memory_the_past_sessions_stay_unknown() -> None:
    source = InMemory(in_batches(favourites(64), 32))
    config = ModelConfig(embedding_size=8, hidden_size=16, dense_size=16, memory_size=0, dropout=0.0)
    _, result = fitted(source, config, num_epochs=40.0)
    # Nothing tells the eight equally frequent items apart: no predictor can go below log 8.
    assert result.losses[-1] >= math.log(8) - 1e-4


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_a_certain_next_item_is_learnt(cell: str, loss: str) -> None:
    config = ModelConfig(cell=cell, embedding_size=8, hidden_size=16, dense_size=16, memory_size=8, dropout=0.0)
    source = InMemory(in_batches(cyclic_rows(64, 10, seed=1)), in_batches(cyclic_rows(16, 10, seed=2)))
    model, result = fitted(source, config, num_epochs=8.0, loss=loss)
    contexts, targets = model.forward_states(batch_of(cyclic_rows(20, 10, seed=3)))
    assert (model.logits(contexts).argmax(dim=1) == targets).float().mean() > 0.95
    assert result.best_recall == 1.0


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    source = InMemory(in_batches(random_rows(24, NUM_TOKENS, 4, seed=1)))
    config = ModelConfig(embedding_size=8, hidden_size=16, dense_size=16, memory_size=8, dropout=0.3)
    weights = [fitted(source, config, num_epochs=1.0, loss="sampled", seed=s)[0].head.weight for s in (5, 5, 6)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_learning_rate_climbs_then_falls_to_a_tenth() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[54] == pytest.approx(0.55)  # half of the cosine: between 1 and 0.1
    assert rates[104] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_best_weights_of_all_epochs_are_kept() -> None:
    # Validation contradicts training: item 2 is followed by 3 here, by 4 there. So the first epoch is the best and later ones are worse.
    source = InMemory(in_batches([row([[2, 3]])] * 16), in_batches([row([[2, 4]])] * 4))
    model, result = fitted(source, num_epochs=6.0, learning_rate=0.05, patience=2)
    losses = {m.step: m.value for m in result.metrics if m.name == "validation_loss"}
    contexts, targets = model.forward_states(batch_of([row([[2, 4]])]))
    kept = -model.logits(contexts).log_softmax(dim=1)[0, targets[0]].item()
    assert kept == pytest.approx(min(losses.values()), rel=1e-5)
    assert losses[result.best_step] == min(losses.values())


def test_training_stops_after_patience_epochs_without_a_better_validation() -> None:
    source = InMemory(in_batches([row([[2, 3]])] * 16), in_batches([row([[2, 4]])] * 4))
    _, result = fitted(source, num_epochs=50.0, learning_rate=0.05, patience=2)
    best_epoch = result.best_step // source.num_steps(0)
    assert result.num_steps == (best_epoch + 2) * source.num_steps(0)


def test_a_fraction_of_an_epoch_is_that_part_of_its_steps() -> None:
    source = InMemory(in_batches(random_rows(80, NUM_TOKENS, 4, seed=1)))
    assert fitted(source, num_epochs=1.25)[1].num_steps == 10 + 3


def test_progress_tells_every_step_and_is_alive_while_validating() -> None:
    heard: list[Progress | None] = []
    source = InMemory(
        in_batches(random_rows(16, NUM_TOKENS, 4, seed=1)), in_batches(random_rows(24, NUM_TOKENS, 4, seed=2))
    )
    _, result = fitted(source, num_epochs=2.0, progress=heard)
    steps = [p and p.step for p in heard]
    assert steps[:13] == [1, 2, None, None, None, 3, 4, *[None] * 6]
    assert set(steps[13:]) == {None}, "while the temperature is fitted"
    assert heard[6].num_steps == 4
    assert heard[6].seconds_left == 0
    assert result.num_tokens == 2 * sum(batch.num_tokens for batch in source.training(0))


def test_a_loss_that_is_no_number_stops_training_with_its_step() -> None:
    source = InMemory(in_batches(random_rows(24, NUM_TOKENS, 4, seed=1)))
    torch.manual_seed(1)
    model = NextEventModel(SMALL_MODEL, NUM_TOKENS, 4)
    config = TrainConfig(device="cpu")

    def poison(progress: Progress | None) -> None:
        if progress.step == 2:
            with torch.no_grad():
                model.head.bias[5] = float("nan")

    trainer = Trainer(model, config, source, Ranks(0, 1, torch.device("cpu")), torch.ones(NUM_TOKENS), poison)
    with pytest.raises(UserError, match=r"the loss is nan at step 3 \(epoch 0, batch 2\)"):
        trainer.fit()


def test_weights_that_the_last_step_before_a_validation_broke_are_refused_and_not_kept() -> None:
    source = InMemory(
        in_batches(random_rows(8, NUM_TOKENS, 4, seed=1)), in_batches(random_rows(8, NUM_TOKENS, 4, seed=2))
    )
    torch.manual_seed(1)
    model = NextEventModel(SMALL_MODEL, NUM_TOKENS, 4)
    config = TrainConfig(device="cpu", num_epochs=1.0, learning_rate=1e30, warmup_steps=0)
    trainer = Trainer(model, config, source, Ranks(0, 1, torch.device("cpu")), torch.ones(NUM_TOKENS))
    with pytest.raises(UserError, match=r"the validation loss is nan after step 1 \(epoch 0, batch 1\)"):
        trainer.fit()
    assert trainer._state.best.weights is None
    validated = trainer.validate()
    assert validated is not None
    assert validated[1] == 0.0, "what has no rank is no hit"


def test_gradients_are_clipped_to_the_norm() -> None:
    source = InMemory(in_batches(cyclic_rows(8, 10, seed=1)))
    norms = []
    torch.manual_seed(1)
    model = NextEventModel(SMALL_MODEL, NUM_TOKENS, 4)
    config = TrainConfig(device="cpu", clip_norm=0.01, num_epochs=1.0)

    def note(progress: Progress | None) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())

    Trainer(model, config, source, Ranks(0, 1, torch.device("cpu")), torch.ones(NUM_TOKENS), note).fit()
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_bf16_autocast_learns_what_fp32_learns(cell: str) -> None:
    source = InMemory(
        in_batches(cyclic_rows(33, 10, seed=1))
    )  # the last row alone: sessions of one length have a kernel of their own
    config = dataclasses.replace(SMALL_MODEL, cell=cell)
    losses = {p: fitted(source, config, num_epochs=8.0, precision=p)[1].losses for p in ("fp32", "bf16")}
    assert losses["bf16"][-1] == pytest.approx(losses["fp32"][-1], abs=0.1)
    assert losses["bf16"] != losses["fp32"]


def test_validation_without_any_target_keeps_the_last_weights() -> None:
    source = InMemory(in_batches(random_rows(16, NUM_TOKENS, 4, seed=1)), [[row([[2]])]])
    _, result = fitted(source, num_epochs=2.0)
    assert result.best_recall is None
    assert result.best_step == result.num_steps == 4


def test_the_temperature_makes_validation_as_likely_as_it_can_be() -> None:
    # Validation is drawn at random: a model sure of its training rows has to be softened.
    validation = in_batches(random_rows(64, NUM_TOKENS, 4, seed=9), 16)
    source = InMemory(in_batches(cyclic_rows(64, 10, seed=1), 32), validation)
    model, result = fitted(source, num_epochs=20.0, patience=100)
    assert result.temperature > 1.5

    def loss(temperature: float) -> float:
        total = 0.0
        for batch in source.validation():
            with torch.no_grad():
                contexts_PD, targets_P = model.forward_states(batch)
                logits_PI = (contexts_PD @ model.output_layer()[0][2:].T + model.output_layer()[1][2:]) / temperature
            kept_P = targets_P > 1
            total += float(torch.nn.functional.cross_entropy(logits_PI[kept_P], targets_P[kept_P] - 2, reduction="sum"))
        return total

    assert loss(result.temperature) < min(loss(result.temperature * 0.7), loss(result.temperature / 0.7), loss(1.0))


def test_without_validation_the_temperature_is_one() -> None:
    _, result = fitted(InMemory(in_batches(cyclic_rows(16, 10, seed=1), 8)), num_epochs=1.0)
    assert result.temperature == 1.0


def test_fitting_the_temperature_gives_a_sign_of_life_after_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "chunk_rows", lambda num_items: 1)
    heard: list[Progress | None] = []
    held_out = cyclic_rows(8, 10, seed=2)
    fitted(InMemory(in_batches(cyclic_rows(16, 10, seed=1)), [held_out]), progress=heard, num_epochs=1.0)
    last_step = max(at for at, progress in enumerate(heard) if progress is not None)
    num_targets = sum(len(one_row["tokens"]) - 1 for one_row in held_out)
    assert len(heard) - last_step > 2 * num_targets, "some passes over the targets, each a chunk"
