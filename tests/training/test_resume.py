"""A run that is interrupted and taken up again ends with the weights of one that never was."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.errors import UserError
from llm_spark.model.network import NextEventModel
from llm_spark.training.batches import ReaderSource
from llm_spark.training.checkpoint import CheckpointFolder
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.loop import FitResult, Trainer
from tests.model.histories import random_rows, row
from tests.training.sequences import InMemory, small_job
from tests.training.test_distributed import RanksInThreads, shares_of

NUM_TOKENS = 12
# Dropout, so that torch's random numbers matter; sampling, so that the loss's do.
MODEL = ModelConfig(embedding_size=8, hidden_size=12, dense_size=8, memory_size=4, dropout=0.3)
CONFIG = TrainConfig(
    num_epochs=2.5,
    batch_rows=8,
    learning_rate=0.02,
    warmup_steps=2,
    loss="sampled",
    num_negatives=5,
    device="cpu",
    weight_decay=0.01,
    checkpoint_seconds=0.0,
)
NUM_STEPS = 10
ONE_RANK = Ranks(0, 1, torch.device("cpu"))


class Interrupted(BaseException):
    """As if the process had been killed."""


class EverySteps(CheckpointFolder):
    """Checkpoints of every `interval`-th step only."""

    interval = 1

    def save(self, step: int, state: dict[str, Any], tensors: dict[str, Any]) -> None:
        if step % self.interval == 0:
            super().save(step, state, tensors)


def memory_source() -> InMemory:
    rows = random_rows(32, NUM_TOKENS, 4, seed=1)
    return InMemory([rows[i : i + 8] for i in range(0, 32, 8)], [random_rows(9, NUM_TOKENS, 4, seed=2)])


def run(
    source: Any, folder: Path | None, stop_after: int = -1, config: TrainConfig = CONFIG, interval: int = 1,
    ranks: Ranks = ONE_RANK, model: NextEventModel | None = None,
) -> tuple[NextEventModel, FitResult]:  # fmt: skip
    """Train; `stop_after` counts calls of on_step, those of validation too, and 0 stops before the first."""
    if model is None:
        torch.manual_seed(1)
        model = NextEventModel(MODEL, NUM_TOKENS, 4)
    torch.manual_seed(2)
    checkpoints = None
    if folder is not None:
        checkpoints = EverySteps(str(folder), {"num_tokens": NUM_TOKENS})
        checkpoints.interval = interval
    calls = 0

    def on_step(progress: Progress | None) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise Interrupted

    trainer = Trainer(model, config, source, ranks, torch.ones(NUM_TOKENS), on_step, checkpoints)
    return model, trainer.fit()


def assert_same_run(ours: tuple[NextEventModel, FitResult], theirs: tuple[NextEventModel, FitResult]) -> None:
    """To the bit: weights, and all that was measured but for the time."""
    for name, tensor in theirs[0].state_dict().items():
        assert torch.equal(ours[0].state_dict()[name], tensor), name
    untimed = {"tokens_per_second"}
    results = [
        (
            replace(result, metrics=[], resumed_at_step=None),
            [(m.step, m.name, m.value) for m in result.metrics if m.name not in untimed],
        )
        for _, result in (ours, theirs)
    ]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[NextEventModel, FitResult]:
    model, result = run(memory_source(), None)
    assert result.num_steps == NUM_STEPS
    return model, result


def test_writing_checkpoints_changes_nothing(uninterrupted: tuple, tmp_path: Path) -> None:
    assert_same_run(run(memory_source(), tmp_path), uninterrupted)


# 10 steps, 3 validations of one batch each, and that batch once more for the temperature
@pytest.mark.parametrize("stop_after", range(1, NUM_STEPS + 4 + 1))
@pytest.mark.parametrize("interval", [1, 3])
def test_a_run_stopped_anywhere_and_taken_up_again_ends_in_the_same_weights(
    uninterrupted: tuple, tmp_path: Path, stop_after: int, interval: int
) -> None:
    with pytest.raises(Interrupted):
        run(memory_source(), tmp_path, stop_after, interval=interval)
    torch.rand(7)  # a new process has other random numbers
    again = run(memory_source(), tmp_path, interval=interval)
    assert_same_run(again, uninterrupted)
    num_done = stop_after - (stop_after > 4) - (stop_after > 9) - (stop_after > 12) - (stop_after > 13)
    assert (again[1].resumed_at_step or 0) == num_done // interval * interval


def stopped_again_and_again(
    source: Any, folder: Path, config: TrainConfig, num_steps: int
) -> tuple[NextEventModel, FitResult]:
    """Two calls at a time: a step at least, for after the last step of an epoch validation comes first. After the last of all steps no stop
    leaves a checkpoint.
    """
    newest = 0
    while newest < num_steps:
        with pytest.raises(Interrupted):
            run(source, folder, 2, config)
        newest = CheckpointFolder(str(folder), {}).steps()[-1]
    return run(source, folder, config=config)


def test_a_run_stopped_after_every_step_ends_in_the_same_weights(uninterrupted: tuple, tmp_path: Path) -> None:
    assert_same_run(stopped_again_and_again(memory_source(), tmp_path, CONFIG, NUM_STEPS), uninterrupted)


def test_early_stopping_counts_on_after_interruptions(tmp_path: Path) -> None:
    # Validation contradicts training, so the first epochs are the best.
    source = InMemory([[row([[2, 3]])] * 8] * 2, [[row([[2, 4]])] * 4])
    config = replace(CONFIG, num_epochs=50.0, learning_rate=0.05, patience=2, loss="full", weight_decay=0.0)
    expected = run(source, None, config=config)
    assert expected[1].num_steps == expected[1].best_step + 2 * 2
    assert_same_run(stopped_again_and_again(source, tmp_path, config, expected[1].num_steps), expected)


@pytest.mark.parametrize("stop_after", range(1, NUM_STEPS + 4 + 1))
def test_the_average_of_the_weights_goes_on_as_it_was(tmp_path: Path, stop_after: int) -> None:
    config = replace(CONFIG, average_decay=0.6)
    expected = run(memory_source(), None, config=config)
    with pytest.raises(Interrupted):
        run(memory_source(), tmp_path, stop_after, config=config)
    assert_same_run(run(memory_source(), tmp_path, config=config), expected)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 3}])
def test_precision_and_accumulation_go_on_as_they_were(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = replace(CONFIG, **settings)
    expected = run(memory_source(), None, config=config)
    with pytest.raises(Interrupted):
        run(memory_source(), tmp_path, 7, config=config)
    assert_same_run(run(memory_source(), tmp_path, config=config), expected)


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 12])
def test_the_reader_goes_on_where_it_was(tmp_path: Path, stop_after: int) -> None:
    rows, validation = random_rows(30, NUM_TOKENS, 4, seed=1), random_rows(8, NUM_TOKENS, 4, seed=2)
    job = small_job(tmp_path, rows, validation, **vars(CONFIG))
    expected = run(ReaderSource(job, ONE_RANK), None)
    with pytest.raises(Interrupted):
        run(ReaderSource(job, ONE_RANK), tmp_path / "checkpoints", stop_after)
    assert_same_run(run(ReaderSource(job, ONE_RANK), tmp_path / "checkpoints"), expected)


def test_a_run_taken_up_from_the_checkpoint_before_a_damaged_one_ends_in_the_same_weights(
    uninterrupted: tuple, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(memory_source(), tmp_path, 6)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    again = run(memory_source(), tmp_path)
    assert again[1].resumed_at_step == int(newest.name.removeprefix("step-")) - 1
    assert_same_run(again, uninterrupted)


@pytest.mark.parametrize(("num_ranks", "average_decay"), [(2, 0.0), (4, 0.0), (2, 0.9)])
def test_ranks_that_are_interrupted_together_end_in_the_weights_of_ranks_that_never_were(
    tmp_path: Path, num_ranks: int, average_decay: float
) -> None:
    rows = random_rows(24, NUM_TOKENS, 4, seed=1)
    batches = [rows[:8], rows[8:16], rows[16:]]
    cuts = [[8 * r // num_ranks for r in range(num_ranks + 1)]] * 3
    shares = shares_of(batches, cuts, random_rows(9, NUM_TOKENS, 4, seed=2))
    config = replace(CONFIG, average_decay=average_decay)

    def all_ranks(folder: Path | None, stop_after: int = -1) -> list[tuple[NextEventModel, FitResult] | None]:
        return in_threads(shares, folder, stop_after, config)

    expected = all_ranks(None)
    for name, tensor in expected[0][0].state_dict().items():
        assert all(torch.equal(model.state_dict()[name], tensor) for model, _ in expected), "the ranks' models are one"
    for stop_after in (1, 4, 6):
        folder = tmp_path / str(stop_after)
        assert all_ranks(folder, stop_after) == [None] * num_ranks
        for ours, theirs in zip(all_ranks(folder), expected, strict=True):
            assert ours is not None
            assert theirs is not None
            assert ours[1].losses == pytest.approx(theirs[1].losses, rel=1e-5)
            for name, tensor in theirs[0].state_dict().items():
                torch.testing.assert_close(ours[0].state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def in_threads(
    shares: list[InMemory], folder: Path | None, stop_after: int, config: TrainConfig
) -> list[tuple[NextEventModel, FitResult] | None]:
    """Without dropout: threads share torch's one generator."""
    barrier, slots = threading.Barrier(len(shares)), [None] * len(shares)
    results: list[tuple[NextEventModel, FitResult] | None] = [None] * len(shares)
    torch.manual_seed(1)
    first = NextEventModel(replace(MODEL, dropout=0.0), NUM_TOKENS, 4).state_dict()
    models = [NextEventModel(replace(MODEL, dropout=0.0), NUM_TOKENS, 4) for _ in shares]
    for model in models:
        model.load_state_dict(first)

    def one(rank: int) -> None:
        ranks = RanksInThreads(rank, len(shares), barrier, slots)
        try:
            results[rank] = run(shares[rank], folder, stop_after, config, ranks=ranks, model=models[rank])
        except Interrupted:
            return

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


def test_weights_of_another_shape_are_refused_naming_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(memory_source(), tmp_path, 2)
    other = NextEventModel(replace(MODEL, dense_size=9), NUM_TOKENS, 4)
    with pytest.raises(UserError, match=r"dense\.weight is \(9, 28\) in this model and .* has \(8, 28\)"):
        run(memory_source(), tmp_path, model=other)


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint_and_comes_again_at_once(tmp_path: Path) -> None:
    # A step of such a size that the second step's logits overflow.
    config = replace(CONFIG, learning_rate=1e30, warmup_steps=0, loss="full", num_epochs=9.0)
    source = memory_source()
    steps = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"is (nan|inf) at step (\d+) \(epoch \d+, batch \d+\)") as error:
            run(source, tmp_path, config=config)
        assert "lower train.learning_rate" in str(error.value)
        steps.append(str(error.value))
        found = CheckpointFolder(str(tmp_path), {"num_tokens": NUM_TOKENS}).newest()
        assert found is not None
        assert f"keeps the checkpoint of step {found.step}" in str(error.value)
        assert all(math.isfinite(value) for value in found.tensors["losses"]["losses"].tolist())
        assert all(bool(tensor.isfinite().all()) for tensor in found.tensors["weights"].values())
    assert steps[0] == steps[1]
