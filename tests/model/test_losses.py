from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_spark.model.losses import NegativeSampler, full_cross_entropy, sampled_cross_entropy
from llm_spark.model.ranking import best_columns, rank_and_list, rank_targets

NUM_STEPS, SIZE, NUM_TOKENS = 23, 6, 14


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    contexts = torch.randn(NUM_STEPS, SIZE, requires_grad=True)
    weight = torch.randn(NUM_TOKENS, SIZE, requires_grad=True)
    bias = torch.randn(NUM_TOKENS, requires_grad=True)
    return contexts, torch.randint(1, NUM_TOKENS, (NUM_STEPS,)), weight, bias


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def torch_cross_entropy(
    contexts: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    logits = F.linear(contexts, weight, bias)[:, 2:]
    return F.cross_entropy(logits, targets - 2, ignore_index=-1, reduction="sum")


@pytest.mark.parametrize("num_rows", [1, 4, 23, None])
def test_chunked_loss_and_gradients_equal_torchs_cross_entropy(num_rows: int | None) -> None:
    contexts, targets, weight, bias = problem()
    ours = full_cross_entropy(contexts, targets, weight, bias, num_rows)
    expected = torch_cross_entropy(contexts, targets, weight, bias)
    torch.testing.assert_close(ours, expected)
    leaves = (contexts, weight, bias)
    torch.testing.assert_close(gradients(3 * ours, *leaves), gradients(3 * expected, *leaves))


class MostRows(TorchDispatchMode):
    """The most rows of any tensor [rows, items] that an operation made."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items, self.most = num_items, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == self.num_items:
                self.most = max(self.most, tensor.shape[0])
        return made


@pytest.mark.parametrize("what", ["loss and gradients", "ranks"])
def test_no_more_logits_are_held_at_a_time_however_many_steps_there_are(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    num_items = 41  # as wide as no other tensor here
    monkeypatch.setattr("llm_spark.model.losses.MAX_LOGITS", 8 * num_items)

    def most_rows(num_steps: int) -> int:
        torch.manual_seed(0)
        contexts = torch.randn(num_steps, SIZE, requires_grad=True)
        weight, bias = torch.randn(num_items + 2, SIZE, requires_grad=True), torch.zeros(num_items + 2)
        targets = torch.randint(2, num_items + 2, (num_steps,))
        with MostRows(num_items) as seen:
            if what == "ranks":
                rank_targets(contexts, targets, weight, bias)
            else:
                gradients(full_cross_entropy(contexts, targets, weight, bias), contexts, weight)
        return seen.most

    assert [most_rows(num_steps) for num_steps in (16, 32, 64)] == [8, 8, 8]


def test_steps_with_unknown_targets_carry_no_loss() -> None:
    contexts, _, weight, bias = problem()
    loss = full_cross_entropy(contexts, torch.ones(NUM_STEPS, dtype=torch.int64), weight, bias)
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients(loss, contexts, weight, bias))


def test_chunked_loss_runs_under_bf16_autocast_near_the_fp32_loss() -> None:
    contexts, targets, weight, bias = problem()
    exact = full_cross_entropy(contexts, targets, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = full_cross_entropy(contexts, targets, weight, bias)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    for ours, expected in zip(gradients(rounded, contexts, weight), gradients(exact, contexts, weight), strict=True):
        assert F.cosine_similarity(ours.flatten(), expected.flatten(), dim=0) > 0.999


def sampled_gradients(num_negatives: int, counts: torch.Tensor) -> list[torch.Tensor]:
    contexts, targets, weight, bias = problem()
    generator = torch.Generator().manual_seed(1)
    sampler = NegativeSampler(counts, power=0.5)
    loss = sampled_cross_entropy(contexts, targets, weight, bias, sampler, num_negatives, generator)
    return gradients(loss, contexts, weight, bias)


@pytest.mark.parametrize("counts", [torch.ones(NUM_TOKENS), torch.arange(NUM_TOKENS) ** 2])
def test_sampled_gradients_tend_to_the_full_ones_as_negatives_grow(counts: torch.Tensor) -> None:
    contexts, targets, weight, bias = problem()
    full = gradients(torch_cross_entropy(contexts, targets, weight, bias), contexts, weight, bias)

    def error(num_negatives: int) -> float:
        sampled = sampled_gradients(num_negatives, counts)
        return sum((a - b).norm().item() for a, b in zip(sampled, full, strict=True))

    few, more, many = error(10), error(1_000), error(100_000)
    assert more < few / 3  # Monte Carlo: a hundredfold of draws takes a tenth of the error
    assert many < more / 3


def test_negatives_are_drawn_by_frequency_to_the_power() -> None:
    counts = torch.tensor([0, 0, 0, 3, 8, 15])  # with 1 added: 1, 4, 9, 16, of which the roots are 1, 2, 3, 4
    sampler = NegativeSampler(counts, power=0.5)
    drawn = sampler.draw(100_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.01)
    torch.testing.assert_close(sampler.log_probability_I, expected.log())


@pytest.mark.parametrize("num_batch_negatives", [0, 4, 9])
def test_shared_negatives_over_their_expected_counts_stand_for_each_item_once(num_batch_negatives: int) -> None:
    counts = torch.tensor([0, 0, 1, 4, 9, 16, 70])
    sampler = NegativeSampler(counts, power=0.5)
    generator = torch.Generator().manual_seed(0)
    num_draws, weight_of_item = 20_000, torch.zeros(5)
    for _ in range(num_draws):
        batch = torch.multinomial(counts[2:].float(), 9, replacement=True, generator=generator)
        negatives, expected_counts = sampler.draw_shared(batch, 6, num_batch_negatives, generator)
        assert len(negatives) == 6 + num_batch_negatives
        weight_of_item.index_add_(0, negatives, 1 / expected_counts)
    torch.testing.assert_close(weight_of_item / num_draws, torch.ones(5), rtol=0, atol=0.05)


def test_gradients_with_batch_negatives_tend_to_the_full_ones_as_drawn_negatives_grow() -> None:
    contexts, targets, weight, bias = problem()
    full = gradients(torch_cross_entropy(contexts, targets, weight, bias), contexts, weight, bias)
    sampler = NegativeSampler(torch.arange(NUM_TOKENS), power=0.5)

    def error(num_negatives: int) -> float:
        generator = torch.Generator().manual_seed(1)
        loss = sampled_cross_entropy(contexts, targets, weight, bias, sampler, num_negatives, generator, NUM_STEPS)
        sampled = gradients(loss, contexts, weight, bias)
        return sum((a - b).norm().item() for a, b in zip(sampled, full, strict=True))

    few, many = error(10), error(100_000)
    assert many < few / 10


def test_ranks_equal_a_brute_force_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts, targets, weight, bias = (t.detach() for t in problem())
    monkeypatch.setattr("llm_spark.model.losses.MAX_LOGITS", 5 * (NUM_TOKENS - 2))
    ranks, log_probabilities = rank_targets(contexts, targets, weight, bias)
    logits = F.linear(contexts, weight, bias)[:, 2:]
    for i, target in enumerate(targets.tolist()):
        if target < 2:
            assert ranks[i] == 0
            assert log_probabilities[i].isnan()
            continue
        order = sorted(range(NUM_TOKENS - 2), key=lambda item: -logits[i, item].item())
        assert ranks[i] == order.index(target - 2) + 1
        torch.testing.assert_close(log_probabilities[i], logits[i].softmax(0)[target - 2].log())


def test_scores_that_only_float32_tells_apart_do_not_tie_under_autocast() -> None:
    weight = torch.tensor([[0.0], [0.0], [1.0], [1.001], [1.002]])
    with torch.autocast("cpu", torch.bfloat16):
        ranks, _ = rank_targets(torch.tensor([[1.0]]), torch.tensor([4]), weight, torch.zeros(5))
    assert ranks.tolist() == [1]


def test_a_tie_counts_against_the_target() -> None:
    weight, bias = torch.zeros(5, 2), torch.tensor([9.0, 9.0, 1.0, 1.0, 0.0])
    ranks, _ = rank_targets(torch.zeros(2, 2), torch.tensor([2, 4]), weight, bias)
    assert ranks.tolist() == [2, 3]


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(1, 700),
    k=st.integers(1, 12),
    num_levels=st.sampled_from([1, 2, 5, 10**6]),
    seed=st.integers(0, 99),
)
def test_the_list_of_the_best_is_that_of_a_stable_sort_however_many_tie(
    num_items: int, k: int, num_levels: int, seed: int
) -> None:
    logits = torch.randint(num_levels, (6, num_items), generator=torch.Generator().manual_seed(seed)).float()
    expected = [sorted(range(num_items), key=lambda item: (-row[item], item))[:k] for row in logits.tolist()]
    assert best_columns(logits, k).tolist() == expected


def test_ranks_and_lists_of_one_pass_are_those_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts, targets, weight, bias = (t.detach() for t in problem())
    monkeypatch.setattr("llm_spark.model.losses.MAX_LOGITS", 5 * (NUM_TOKENS - 2))
    targets[3] = 1
    ranked = rank_and_list(contexts, targets, 4, weight, bias, temperature=2.0)
    expected_ranks, expected_log_probabilities = rank_targets(contexts, targets, weight, bias)
    assert ranked.ranks_P[3] == 0
    assert ranked.ranks_P.tolist() == expected_ranks.tolist()
    torch.testing.assert_close(ranked.log_probabilities_P, expected_log_probabilities, equal_nan=True)
    best_first = F.linear(contexts, weight, bias)[:, 2:].argsort(dim=1, descending=True)
    assert ranked.listed_PK.tolist() == (2 + best_first[:, :4]).tolist()
    softened = (F.linear(contexts, weight, bias)[:, 2:] / 2).softmax(dim=1)
    torch.testing.assert_close(ranked.confidence_P, softened.max(dim=1).values)
