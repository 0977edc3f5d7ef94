from __future__ import annotations

import numpy as np
import pytest
import torch

from llm_spark.config import ModelConfig
from llm_spark.model.network import NextEventModel
from tests.benchmarks.quality.histories import NUM_EVENT_TYPES, Histories
from tests.benchmarks.quality.measures import bootstrap_interval, model_ranks, mrr, ndcg, recall

NUM_TOKENS = 9
CONFIG = ModelConfig(embedding_size=4, hidden_size=5, dense_size=6, memory_size=0, dropout=0.5, tied=True)


def made_model() -> NextEventModel:
    torch.manual_seed(0)
    return NextEventModel(CONFIG, NUM_TOKENS, NUM_EVENT_TYPES)


def test_gains_of_hand_worked_ranks() -> None:
    ranks = np.array([1, 3, 20, 21, 0])
    assert recall(ranks, 20).tolist() == [1, 1, 1, 0, 0]
    assert mrr(ranks, 20) == pytest.approx([1, 1 / 3, 1 / 20, 0, 0])
    assert ndcg(ranks, 20) == pytest.approx([1, 0.5, np.log(2) / np.log(21), 0, 0])


@pytest.mark.parametrize("filter_seen", [False, True])
def test_model_ranks_equal_a_brute_force_sort_row_by_row(filter_seen: bool) -> None:
    rng = np.random.default_rng(0)
    sessions = [list(rng.integers(2, NUM_TOKENS, size=n)) for n in (2, 5, 3, 5, 4)]
    first_targets = [1, 3, 2, 4, 1]
    model = made_model()
    ranks, rows = model_ranks(model, Histories.of_sessions(sessions, first_targets), 2, filter_seen)
    expected = {}
    for row, (session, first) in enumerate(zip(sessions, first_targets, strict=True)):
        for position in range(first, len(session)):
            alone = Histories.of_sessions([session[: position + 1]], [position]).batch(np.array([0]))
            scores = model.logits(model.forward_states(alone)[0])[0].detach().numpy()
            target = session[position]
            rivals = [v for v in range(2, NUM_TOKENS) if not (filter_seen and v in session[:first] and v != target)]
            expected.setdefault(row, []).append(sum(scores[v] >= scores[target] for v in rivals))
    found = {row: ranks[rows == row].tolist() for row in range(len(sessions))}
    assert found == expected


def test_an_unknown_target_is_a_miss() -> None:
    ranks, _ = model_ranks(made_model(), Histories.of_sessions([[3, 1]]), 1)
    assert ranks.tolist() == [0]


def test_equal_scores_count_against_the_target() -> None:
    model = made_model()
    with torch.no_grad():
        model.item_embedding.weight.zero_()
        model.head.bias.zero_()
    ranks, _ = model_ranks(model, Histories.of_sessions([[3, 4]]), 1)
    assert ranks.tolist() == [NUM_TOKENS - 2]


def test_interval_is_wider_where_positions_hang_together_by_user() -> None:
    gains = np.repeat([0.0, 1.0] * 20, 25)
    users = np.repeat(np.arange(40), 25)
    low, high = bootstrap_interval(gains, users)
    of_positions = bootstrap_interval(gains, np.arange(len(gains)))
    assert low < 0.5 < high
    # Standard error of a mean of 40 users of which half have gain 1: 0.5 / sqrt(40); of 1,000 positions: 0.5 / sqrt(1000).
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(40), rel=0.1)
    assert of_positions[1] - of_positions[0] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(1000), rel=0.1)
