from __future__ import annotations

import torch

from llm_spark.config import ModelConfig
from llm_spark.model.losses import full_cross_entropy, is_item
from llm_spark.model.network import NextEventModel
from tests.benchmarks.tutorial_loop import PADDING, TutorialModel, collate_histories, collate_sessions
from tests.model.histories import batch_of, random_rows, row

NUM_TOKENS, NUM_EVENT_TYPES = 12, 4


def as_read(rows: list[dict]) -> list[dict]:
    """As pyarrow gives rows: a missing value is None."""
    return [{**one, "values": [None if value != value else value for value in one["values"]]} for one in rows]


def test_the_padded_tutorial_model_has_the_loss_and_gradients_of_the_packed_one() -> None:
    config = ModelConfig(embedding_size=5, hidden_size=6, dense_size=7, memory_size=4, dropout=0.0, use_time_gaps=False)
    torch.manual_seed(0)
    ours = NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES, value_mean=5.0, value_std=3.0)
    with torch.no_grad():
        ours.memory_cell.newcomer_M.normal_()
    rows = random_rows(9, NUM_TOKENS, NUM_EVENT_TYPES, seed=2)
    theirs = TutorialModel.like(ours, config)
    contexts_PD, targets_P = ours(batch_of(rows))
    loss = full_cross_entropy(contexts_PD, targets_P, ours.head.weight, ours.head.bias)
    loss.backward()
    padded_loss, num_targets = theirs(collate_sessions(as_read(rows)))
    padded_loss.backward()
    assert num_targets == int(is_item(targets_P).sum())
    torch.testing.assert_close(padded_loss, loss)
    pairs = [
        (ours.item_embedding, theirs.item_embedding),
        (ours.memory_cell.start, theirs.start),
        (ours.attention.memory_key, theirs.memory_key),
        (ours.dense, theirs.dense),
        (ours.head, theirs.head),
    ]
    for packed, padded in pairs:
        torch.testing.assert_close(padded.weight.grad, packed.weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs.cell.weight_hh_l0.grad, ours.cell.weight_hh_l0.grad, atol=1e-5, rtol=1e-4)


def test_padded_histories_have_no_target_where_there_is_padding_context_or_an_unknown_item() -> None:
    rows = [row([[2, 3, 1, 5]], first_target=2), row([[7, 8]])]
    tokens, targets = collate_histories(rows)
    assert tokens.tolist() == [[2, 3, 1, 5], [7, 8, PADDING, PADDING]]
    assert targets.tolist() == [[0, 0, 0, 5], [0, 8, 0, 0]]
