from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llm_spark.config import ModelConfig
from llm_spark.model.network import NextEventModel
from llm_spark.training.warm_start import differing_setting, take_over
from tests.model.histories import batch_of, random_rows
from tests.training.sequences import SMALL_MODEL

NUM_OLD, NUM_NEW = 12, 17


def models(config: ModelConfig = SMALL_MODEL, num_new: int = NUM_NEW, num_new_types: int = 6) -> tuple:
    """A parent whose weights are all random, and the model that begins with it."""
    torch.manual_seed(3)
    parent = NextEventModel(config, NUM_OLD, 4, value_mean=3.0, value_std=2.0)
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    child = NextEventModel(config, num_new, num_new_types, value_mean=9.0, value_std=7.0)
    return parent.eval(), child.eval()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_grown_model_ranks_the_old_items_as_its_parent_does_whatever_new_ones_a_history_holds(cell: str) -> None:
    parent, child = models(replace(SMALL_MODEL, cell=cell))
    take_over(child, parent, torch.ones(NUM_NEW))
    batch = batch_of(random_rows(20, NUM_NEW, 6, seed=1))  # with items and event types that the parent does not know
    ours, theirs = (model.logits(model.forward_states(batch)[0])[:, :NUM_OLD] for model in (child, parent))
    torch.testing.assert_close(ours, theirs)


def test_the_same_vocabulary_gives_the_same_model() -> None:
    parent, child = models(num_new=NUM_OLD, num_new_types=4)
    take_over(child, parent, torch.ones(NUM_OLD))
    for name, tensor in parent.state_dict().items():
        assert torch.equal(child.state_dict()[name], tensor), name


def test_a_new_item_as_frequent_as_the_old_ones_gets_their_mean_score() -> None:
    parent, child = models()
    take_over(child, parent, torch.full((NUM_NEW,), 5.0))
    contexts = child.forward_states(batch_of(random_rows(20, NUM_OLD, 4, seed=1)))[0]
    logits = child.logits(contexts)
    mean_of_old = logits[:, 2:NUM_OLD].mean(dim=1, keepdim=True)
    torch.testing.assert_close(logits[:, NUM_OLD:], mean_of_old.expand(-1, NUM_NEW - NUM_OLD))


def test_a_new_item_that_is_twice_as_frequent_scores_the_logarithm_of_two_more() -> None:
    parent, child = models()
    counts = torch.full((NUM_NEW,), 4.0)
    counts[14] = 9.0  # (9 + 1) / (4 + 1)
    take_over(child, parent, counts)
    contexts = child.forward_states(batch_of(random_rows(20, NUM_OLD, 4, seed=1)))[0]
    logits = child.logits(contexts)
    torch.testing.assert_close(logits[:, 14] - logits[:, 13], torch.full((len(logits),), 2.0).log())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"hidden_size": 20}, "model.hidden_size is 20 and was 16"),
        ({"cell": "lstm"}, "model.cell is 'lstm' and was 'gru'"),
        ({"use_values": False}, "model.use_values is False and was True"),
    ],
)
def test_a_parent_of_another_shape_is_told_by_the_setting(changed: dict, named: str) -> None:
    assert differing_setting(SMALL_MODEL, replace(SMALL_MODEL, **changed)) == named


def test_another_dropout_is_no_other_shape() -> None:
    assert differing_setting(SMALL_MODEL, replace(SMALL_MODEL, dropout=0.5)) == ""


def test_a_parent_with_more_items_is_refused() -> None:
    parent, child = models(num_new=NUM_OLD - 1)
    with pytest.raises(ValueError, match=r"item_embedding.weight is \(11, 8\) and the parent's \(12, 8\)"):
        take_over(child, parent, torch.ones(NUM_OLD - 1))
