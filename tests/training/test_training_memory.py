"""A step cut into parts, half precision, and what is said when memory or numbers run out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.errors import UsageError, UserError
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.loop import FitResult, Trainer
from tests.model.histories import Row, batch_of, random_rows, row
from tests.training.sequences import SMALL_MODEL, InMemory, cyclic_rows

NUM_TOKENS = 12
CPU = Ranks(0, 1, torch.device("cpu"))


def trainer_of(source: InMemory, model: NextEventModel | None = None, **settings: Any) -> Trainer:
    if model is None:
        torch.manual_seed(1)
        model = NextEventModel(SMALL_MODEL, NUM_TOKENS, 4)
    config = TrainConfig(**{"num_epochs": 3.0, "learning_rate": 0.02, "warmup_steps": 2, "device": "cpu", **settings})
    return Trainer(model, config, source, CPU, torch.ones(NUM_TOKENS))


def fitted(source: InMemory, **settings: Any) -> tuple[NextEventModel, FitResult]:
    trainer = trainer_of(source, **settings)
    return trainer.model, trainer.fit()


def rows_of(batch: HistoryBatch) -> list[tuple]:
    """Each row's tokens, types, values, times, session beginnings and first target."""
    found = []
    for b in range(batch.num_rows):
        begin, end = batch.row_offsets[b : b + 2].tolist()
        sessions = [s - begin for s in batch.session_offsets[:-1].tolist() if begin <= s < end]
        columns = (batch.tokens_N, batch.event_types_N, batch.values_N.nan_to_num(-1.0), batch.event_times_N)
        found.append((*(c[begin:end].tolist() for c in columns), sessions, int(batch.first_target_B[b])))
    return found


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 40])
def test_the_parts_of_a_batch_are_its_rows_in_order(num_parts: int) -> None:
    rows = [*random_rows(9, NUM_TOKENS, 4, seed=3), row([]), *random_rows(4, NUM_TOKENS, 4, seed=4), row([])]
    batch = batch_of(rows)
    parts = batch.parts(num_parts)
    assert len(parts) <= num_parts
    assert all(part.num_tokens for part in parts)
    filled = [r for r in rows_of(batch) if r[0]]
    assert [r for part in parts for r in rows_of(part) if r[0]] == filled
    for part in parts:
        assert int(part.session_offsets[-1]) == part.num_tokens == int(part.row_offsets[-1])


def test_the_parts_of_a_batch_have_about_equally_many_events() -> None:
    batch = batch_of(random_rows(400, NUM_TOKENS, 4, seed=3))
    sizes = [part.num_tokens for part in batch.parts(4)]
    assert max(sizes) - min(sizes) <= 2 * 5 * 7  # the longest row has five sessions of seven events


def test_a_batch_without_events_has_no_parts() -> None:
    assert batch_of([row([])]).parts(3) == []
    assert batch_of([]).parts(3) == []


@pytest.mark.parametrize("loss", ["full", "sampled"])
@pytest.mark.parametrize("accumulate", [2, 3, 50])
def test_a_step_in_parts_has_the_loss_curve_of_a_step_at_once(loss: str, accumulate: int) -> None:
    rows = random_rows(24, NUM_TOKENS, 4, seed=1)
    source = InMemory([rows[:8], [], rows[8:16], rows[16:]])
    (model, at_once), (other, in_parts) = (
        fitted(source, loss=loss, num_negatives=6, num_batch_negatives=0, accumulate=parts) for parts in (1, accumulate)
    )
    assert in_parts.losses == pytest.approx(at_once.losses, rel=1e-4)
    assert in_parts.num_tokens == at_once.num_tokens
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def most_kept(source: InMemory, accumulate: int) -> int:
    """The most bytes that autograd has kept at one time for a backward pass."""
    kept = most = 0

    class Counted:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal kept, most
            self.tensor = tensor
            kept += tensor.numel() * tensor.element_size()
            most = max(most, kept)

        def __del__(self) -> None:
            nonlocal kept
            kept -= self.tensor.numel() * self.tensor.element_size()

    with torch.autograd.graph.saved_tensors_hooks(Counted, lambda counted: counted.tensor):
        fitted(source, accumulate=accumulate, num_epochs=1.0)
    return most


def test_a_step_in_parts_needs_less_memory() -> None:
    source = InMemory([random_rows(200, NUM_TOKENS, 4, seed=1)])
    assert most_kept(source, 4) < 0.4 * most_kept(source, 1)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_fp16_learns_what_fp32_learns(cell: str) -> None:
    rows = cyclic_rows(32, 10, seed=1)
    # Sessions of one length, as a row alone has them, take another kernel than sessions of several lengths.
    source = InMemory([*(rows[i : i + 8] for i in range(0, 24, 8)), rows[24:31], rows[31:]])
    losses = {}
    for precision in ("fp32", "fp16"):
        torch.manual_seed(1)
        model = NextEventModel(dataclasses.replace(SMALL_MODEL, cell=cell), NUM_TOKENS, 4)
        losses[precision] = trainer_of(source, model, num_epochs=8.0, precision=precision).fit().losses
    assert losses["fp16"] != losses["fp32"]
    assert losses["fp16"][-1] == pytest.approx(losses["fp32"][-1], abs=0.1)


def test_fp16_leaves_a_step_out_whose_scaled_gradients_overflow_and_scales_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = cyclic_rows(8, 10, seed=1)
    trainer = trainer_of(InMemory([rows]), precision="fp16", num_epochs=1.0)
    trainer._scaler.load_state_dict({**trainer._scaler.state_dict(), "scale": 2.0**40})
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.fit()
    assert all(torch.equal(p, b) for p, b in zip(trainer.model.parameters(), before, strict=True))
    assert trainer._scaler.get_scale() == 2.0**39


class Failing(NextEventModel):
    """Raises at the third batch, or at another."""

    def __init__(self, error: Any, at_batch: int = 3) -> None:
        super().__init__(SMALL_MODEL, NUM_TOKENS, 4)
        self._error, self._at_batch, self._num_calls = error, at_batch, 0

    def forward_states(self, batch: HistoryBatch) -> tuple[torch.Tensor, torch.Tensor]:
        self._num_calls += 1
        if self._num_calls == self._at_batch:
            self._error()
        return super().forward_states(batch)


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def run_out_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("error", [allocate_too_much, run_out_on_a_gpu])
@pytest.mark.parametrize(("loss", "last"), [("full", r"\(8\)"), ("sampled", r"train\.num_negatives \(7\)")])
def test_out_of_memory_says_which_settings_help(error: Any, loss: str, last: str) -> None:
    source = InMemory([random_rows(8, NUM_TOKENS, 4, seed=1)])
    trainer = trainer_of(source, Failing(error), batch_rows=8, accumulate=1, loss=loss, num_negatives=7)
    with pytest.raises(UserError) as raised:
        trainer.fit()
    assert raised.match(
        rf"^out of memory at step 3 on rank 0: raise train\.accumulate \(1\).*train\.batch_rows.*{last}$"
    )


def test_out_of_memory_in_the_first_step_where_adams_state_is_made_says_that_it_may_be_the_models_size() -> None:
    source = InMemory([random_rows(8, NUM_TOKENS, 4, seed=1)])
    with pytest.raises(UserError, match=r"^out of memory at step 1 on rank 0: raise train\.accumulate") as raised:
        trainer_of(source, Failing(allocate_too_much, at_batch=1)).fit()
    assert raised.match(r"lower model\.embedding_size \(8\), model\.hidden_size \(16\) or sequences\.max_items$")


def test_out_of_memory_when_all_steps_are_done_is_told_too() -> None:
    # One step, its validation, and the temperature, which asks for the validation's contexts once more.
    rows = random_rows(8, NUM_TOKENS, 4, seed=1)
    trainer = trainer_of(InMemory([rows], [rows]), Failing(allocate_too_much), num_epochs=1.0)
    with pytest.raises(UserError, match=r"^out of memory .* train\.batch_rows"):
        trainer.fit()


def test_another_error_stays_what_it_is() -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not match")

    trainer = trainer_of(InMemory([random_rows(8, NUM_TOKENS, 4, seed=1)]), Failing(fail))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.fit()


def test_gradients_that_are_no_numbers_stop_training_before_they_reach_the_weights() -> None:
    source = InMemory([random_rows(8, NUM_TOKENS, 4, seed=1)] * 4)
    trainer = trainer_of(source)
    seen: list[Progress | None] = []

    def poison(progress: Progress | None) -> None:
        seen.append(progress)
        if len(seen) == 2:
            trainer.model.dense.weight.register_hook(lambda gradient: gradient * float("inf"))

    trainer.on_step = poison
    with pytest.raises(UserError, match=r"the gradient's norm is (inf|nan) at step 3 \(epoch 0, batch 2\)"):
        trainer.fit()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row([]), row([[2, 3]]), row([])], id="empty sequences among others"),
        pytest.param([row([])] * 3, id="empty sequences alone"),
        pytest.param([row([[2], [3], [4]]), row([[5], [6]])], id="one-step sessions"),
        pytest.param([row([[2]])] * 3, id="one event a user"),
        pytest.param([row([[7, 7, 7], [7, 7]])] * 4, id="all items equal"),
        pytest.param([row([[1, 1, 1]])] * 3, id="unknown items alone"),
        pytest.param([row([[2, 3, 4]], first_target=9)], id="no target"),
        pytest.param([row([[2, 3]], gap_seconds=0), row([[4, 5], [6]], gap_seconds=0)], id="no time between sessions"),
        pytest.param([row([[2, 3]], value=float("inf")), row([[4, 5]], value=1e30)], id="values beyond measure"),
    ],
)
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_odd_sequences_train_to_finite_weights(rows: list[Row], cell: str, loss: str) -> None:
    config = ModelConfig(cell=cell, embedding_size=8, hidden_size=16, dense_size=16, memory_size=8)
    model = NextEventModel(config, NUM_TOKENS, 4)
    source = InMemory([rows, [], rows], [rows])
    result = trainer_of(source, model, loss=loss, num_negatives=4).fit()
    assert result.num_steps == 9
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert all(torch.isfinite(torch.tensor(result.losses)))


def test_items_that_are_all_equal_become_certain() -> None:
    _, result = fitted(InMemory([[row([[7, 7, 7], [7, 7]])] * 4]), num_epochs=60.0)
    assert result.losses[-1] < 0.01


@pytest.mark.parametrize(
    "setting", [{"accumulate": 0}, {"keep_checkpoints": 0}, {"checkpoint_seconds": -1.0}, {"precision": "fp8"}]
)
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"train.{next(iter(setting))}"):
        TrainConfig(**setting)
