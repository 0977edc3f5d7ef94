from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from llm_spark.config import TrainConfig
from llm_spark.errors import UserError
from llm_spark.model.network import NextEventModel
from llm_spark.training.distributed import GradientBuffer, Ranks, choose_device
from llm_spark.training.loop import FitResult, Trainer
from tests.model.histories import Row, random_rows
from tests.training.sequences import SMALL_MODEL, InMemory

NUM_TOKENS = 12


class RanksInThreads(Ranks):
    """Ranks that are threads of this process and add up through shared memory."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, slots: list[Tensor | None]) -> None:
        super().__init__(rank, world_size, torch.device("cpu"))
        self._barrier, self._slots = barrier, slots

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait(timeout=60)
        tensor.copy_(torch.stack(self._slots).sum(dim=0))
        self._barrier.wait(timeout=60)
        return tensor


def train_in_threads(shares: list[InMemory]) -> list[tuple[NextEventModel, FitResult]]:
    """One model a rank, each with its share of every global batch."""
    barrier, slots = threading.Barrier(len(shares)), [None] * len(shares)
    results: list[tuple[NextEventModel, FitResult] | None] = [None] * len(shares)
    models = []
    for _ in shares:
        torch.manual_seed(1)
        models.append(NextEventModel(SMALL_MODEL, NUM_TOKENS, 4))
    config = TrainConfig(num_epochs=4.0, device="cpu", warmup_steps=2, learning_rate=0.01, num_ranks=1)

    def run(rank: int) -> None:
        ranks = RanksInThreads(rank, len(shares), barrier, slots)
        result = Trainer(models[rank], config, shares[rank], ranks, torch.ones(NUM_TOKENS)).fit()
        results[rank] = (models[rank], result)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert all(result is not None for result in results)
    return results


def shares_of(batches: list[list[Row]], cuts: list[list[int]], validation: list[Row]) -> list[InMemory]:
    """Cut every global batch at the given rows: rank r takes rows cuts[b][r] to cuts[b][r+1] of batch b."""
    num_ranks = len(cuts[0]) - 1
    return [
        InMemory(
            [batch[cut[r] : cut[r + 1]] for batch, cut in zip(batches, cuts, strict=True)], [validation[r::num_ranks]]
        )
        for r in range(num_ranks)
    ]


@pytest.mark.parametrize(
    "cuts",
    [
        [[0, 4, 8]] * 3,
        [[0, 1, 8], [0, 8, 8], [0, 0, 8]],  # very unequal, and none at all
        [[0, 2, 2, 5, 8]] * 3,
    ],
    ids=["halves", "unequal and empty", "four ranks"],
)
def test_ranks_that_share_global_batches_have_the_loss_curve_of_one_rank(cuts: list[list[int]]) -> None:
    rows = random_rows(24, NUM_TOKENS, 4, seed=1)
    batches = [rows[:8], rows[8:16], rows[16:]]
    validation = random_rows(9, NUM_TOKENS, 4, seed=2)
    [(alone, alone_result)] = train_in_threads([InMemory(batches, [validation])])
    for model, result in train_in_threads(shares_of(batches, cuts, validation)):
        assert result.losses == pytest.approx(alone_result.losses, rel=1e-4)
        assert result.num_tokens == alone_result.num_tokens
        assert result.best_step == alone_result.best_step
        values = {m.name: m.value for m in alone_result.metrics if m.name.startswith("validation")}
        assert {m.name: m.value for m in result.metrics if m.name in values} == pytest.approx(values, rel=1e-4)
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_step_without_targets_on_any_rank_changes_nothing_but_goes_on() -> None:
    rows = random_rows(8, NUM_TOKENS, 4, seed=1)
    [(_, result)] = train_in_threads([InMemory([[], rows])])
    assert result.num_steps == 8
    assert result.losses[::2] == [0.0] * 4


def test_gradients_live_in_the_buffer_and_start_at_zero_each_step() -> None:
    layer = torch.nn.Linear(2, 3)
    buffer = GradientBuffer(layer.parameters(), num_totals=1)
    for _ in range(2):
        buffer.zero()
        layer(torch.ones(1, 2)).sum().backward()
        assert buffer.gradients.tolist() == [1.0] * 9
    assert buffer.totals.tolist() == [0.0]


def test_asking_for_a_gpu_where_there_is_none_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", 0, 1) == torch.device("cpu")
    with pytest.raises(UserError, match=r"train\.device=cpu"):
        choose_device("cuda", 0, 1)


def test_more_ranks_than_gpus_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1, 2) == torch.device("cuda", 1)
    assert choose_device("cpu", 1, 4) == torch.device("cpu")
    with pytest.raises(UserError, match=r"3 ranks share a machine of 2 GPUs: give train\.num_ranks=2"):
        choose_device("auto", 0, 3)
