"""The temperature: found where targets were drawn at a known one, the best of its neighbours, the same over ranks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_spark.model import calibration
from llm_spark.model.calibration import fit_temperature

NUM_TOKENS, SIZE = 30, 6


def drawn(num_steps: int, truth: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps whose targets are drawn from the softmax at temperature `truth`."""
    torch.manual_seed(seed)
    contexts_PD, weight_VD, bias_V = (
        torch.randn(num_steps, SIZE),
        torch.randn(NUM_TOKENS, SIZE),
        torch.randn(NUM_TOKENS),
    )
    logits_PI = contexts_PD @ weight_VD[2:].T + bias_V[2:]
    targets_P = torch.multinomial((logits_PI / truth).softmax(dim=1), 1).squeeze(1) + 2
    return contexts_PD, targets_P, weight_VD, bias_V


def mean_loss(steps: tuple[Tensor, Tensor, Tensor, Tensor], temperature: float) -> float:
    contexts_PD, targets_P, weight_VD, bias_V = (
        tensor.double() if tensor.is_floating_point() else tensor for tensor in steps
    )
    logits_PI = contexts_PD @ weight_VD[2:].T + bias_V[2:]
    return float(torch.nn.functional.cross_entropy(logits_PI / temperature, targets_P - 2))


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_temperature_that_drew_the_targets_is_found(truth: float) -> None:
    assert fit_temperature(*drawn(20_000, truth, seed=1)) == pytest.approx(truth, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), truth=st.floats(0.2, 4.0))
def test_no_temperature_beside_it_makes_the_targets_likelier(seed: int, truth: float) -> None:
    steps = drawn(60, truth, seed)
    found = fit_temperature(*steps)
    best = mean_loss(steps, found)
    assert 0.05 <= found <= 20
    if 0.06 < found < 19:
        assert best <= min(mean_loss(steps, found * factor) for factor in (0.5, 0.98, 1.02, 2.0))


def test_two_ranks_with_parts_of_the_steps_find_what_one_finds() -> None:
    contexts_PD, targets_P, weight_VD, bias_V = drawn(90, 2.0, seed=3)
    whole = fit_temperature(contexts_PD, targets_P, weight_VD, bias_V)
    barrier, totals = threading.Barrier(2), {}

    def fitted(rank: int) -> float:
        def sum_over_ranks(mine: Tensor) -> Tensor:
            totals[rank] = mine
            barrier.wait(timeout=60)
            both = totals[0] + totals[1]
            barrier.wait(timeout=60)
            return both

        part = slice(0, 20) if rank == 0 else slice(20, 90)
        return fit_temperature(contexts_PD[part], targets_P[part], weight_VD, bias_V, sum_over_ranks)

    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(fitted, (0, 1))
    assert first == second == pytest.approx(whole, rel=1e-6)


def test_unknown_targets_have_no_say_and_without_any_target_it_stays_one() -> None:
    contexts_PD, targets_P, weight_VD, bias_V = drawn(50, 2.0, seed=4)
    with_unknown = torch.cat([targets_P, torch.ones(10, dtype=torch.long)])
    more_PD = torch.cat([contexts_PD, torch.randn(10, SIZE)])
    expected = fit_temperature(contexts_PD, targets_P, weight_VD, bias_V)
    assert fit_temperature(more_PD, with_unknown, weight_VD, bias_V) == pytest.approx(expected, rel=1e-6)
    assert fit_temperature(contexts_PD[:0], targets_P[:0], weight_VD, bias_V) == 1.0


def test_every_chunk_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "chunk_rows", lambda num_items: 10)
    steps, num_beats, num_passes = drawn(95, 2.0, seed=6), 0, 0

    def beat() -> None:
        nonlocal num_beats
        num_beats += 1

    def sum_over_ranks(totals: Tensor) -> Tensor:
        nonlocal num_passes
        num_passes += 1
        return totals

    assert fit_temperature(*steps, sum_over_ranks, beat) == fit_temperature(*steps)
    assert num_passes > 1
    assert num_beats == 10 * num_passes


def test_a_model_that_is_always_right_is_not_sharpened_without_end() -> None:
    contexts_PD, _, weight_VD, bias_V = drawn(50, 1.0, seed=5)
    best_P = (contexts_PD @ weight_VD[2:].T + bias_V[2:]).argmax(dim=1) + 2
    assert fit_temperature(contexts_PD, best_P, weight_VD, bias_V) >= 0.05
