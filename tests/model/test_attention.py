"""The attention on numbers worked by hand: one hidden unit, states 1 and 2, memory 3, all weights 1 but the memory's value, 2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_spark.model.attention import SessionAttention
from llm_spark.model.plan import SessionPlan
from tests.model.histories import batch_of, row


def contexts(score: str, memory_size: int, inputs: torch.Tensor | None = None) -> list:
    """The context vectors of a session's two steps, as numbers where they have but one each."""
    attention = SessionAttention(hidden_size=1, memory_size=memory_size, score=score)
    with torch.no_grad():
        for layer in attention.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.fill_(1.0)
                if layer.bias is not None:
                    layer.bias.zero_()
        if attention.memory_value is not None:
            attention.memory_value.weight.fill_(2.0)
        plan = SessionPlan.for_next_step(batch_of([row([[2]])]))
        memory_SM = torch.full((1, memory_size), 3.0)
        return attention(torch.tensor([[1.0], [2.0]]), memory_SM, plan, inputs).squeeze(1).tolist()


def test_dot_scores_with_the_memory_as_an_extra_key() -> None:
    # Step 0, query 1: the memory scores 1 x 3, the state 1 x 1; weights 1 : e^-2; values 6 and 1: 6.135335 / 1.135335.
    # Step 1, query 2: 2 x 3, 2 x 1, 2 x 2; weights 1 : e^-4 : e^-2; values 6, 1 and 2: 6.288986 / 1.153651.
    assert contexts("dot", memory_size=1) == pytest.approx([5.403985, 5.451377], abs=1e-5)


def test_dot_scores_without_memory_see_the_states_up_to_their_own() -> None:
    # Step 0 sees itself alone. Step 1: scores 2 and 4, weights e^-2 : 1, values 1 and 2: 2.135335 / 1.135335.
    assert contexts("dot", memory_size=0) == pytest.approx([1.0, 1.880797], abs=1e-5)


def test_additive_scores_with_the_memory_as_an_extra_key() -> None:
    # tanh(q + k). Step 0: tanh(4) = 0.999329, tanh(2) = 0.964028; weights e^0.035301 : 1, values 6 and 1: 7.215591 / 2.035932.
    # Step 1: tanh 5, 3, 4 = 0.999909, 0.995055, 0.999329; weights 1.004866 : 1 : 1.004284, values 6, 1, 2: 9.037764 / 3.009150.
    assert contexts("additive", memory_size=1) == pytest.approx([3.544122, 3.003428], abs=1e-4)


def test_additive_scores_without_memory_see_the_states_up_to_their_own() -> None:
    # Step 1: tanh 3 and 4; weights 1 : 1.004284, values 1 and 2: 3.008568 / 2.004284.
    assert contexts("additive", memory_size=0) == pytest.approx([1.0, 1.501069], abs=1e-5)


def test_the_inputs_are_summed_by_the_same_weights_behind_the_states() -> None:
    # The weights of the second test above, the inputs' numbers 10 and 20 and their opposites.
    first, second = contexts("dot", 0, torch.tensor([[10.0, -10.0], [20.0, -20.0]]))
    assert first == pytest.approx([1.0, 10.0, -10.0], abs=1e-5)
    assert second == pytest.approx([1.880797, 18.807971, -18.807971], abs=1e-5)


def test_the_memory_has_a_share_of_the_weights_but_no_input() -> None:
    # Step 0: weights 1 : e^-2, of which the input 10 has e^-2: 1.353353 / 1.135335. Step 1: 0.183156 + 2.706706 of 1.153651.
    found = contexts("dot", 1, torch.tensor([[10.0], [20.0]]))
    assert [step[1] for step in found] == pytest.approx([1.192029, 2.504970], abs=1e-5)
    assert [step[0] for step in found] == pytest.approx(contexts("dot", 1), abs=1e-6)
