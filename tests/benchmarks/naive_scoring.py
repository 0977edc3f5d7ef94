"""Scoring as one would write it first: users as they come, padded, all logits of a batch at once, then topk.

The network and its weights are the product's own, taken apart: so its results must be the same. What is naive is the way
through the batch: session by session of users of any length, every session padded to the longest beside it.

Shape suffixes: B users of a batch, S users that have this session, T steps, E embedding, H hidden, M memory, V items, K list.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm_spark.model.history import HistoryBatch
from llm_spark.model.inputs import MAX_STANDARDISED_VALUE
from llm_spark.model.network import NextEventModel
from llm_spark.tokens import FIRST_ITEM_TOKEN


@torch.inference_mode()
def top_items_of(model: NextEventModel, batch: HistoryBatch, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest next items of each user's open session: tokens, logits and probabilities, each [B, K].

    The model is a GRU with memory, dot attention and a dense layer, fed with items, event types and values.
    """
    cell, memory_cell = model.cell, model.memory_cell
    assert memory_cell is not None
    sessions = _sessions(batch)
    memory_BM = memory_cell.newcomers(batch.num_rows).clone()
    state_BH = torch.zeros(batch.num_rows, model.config.hidden_size)
    states_of_last: list[Tensor] = [state_BH[:0]] * batch.num_rows
    for number in range(max(map(len, sessions))):
        here = [user for user, of_user in enumerate(sessions) if len(of_user) > number]
        bounds = [sessions[user][number] for user in here]
        inputs_STE = pad_sequence([_inputs(model, batch, first, end) for first, end in bounds], batch_first=True)
        start = memory_cell.initial_states(memory_BM[here])[0]
        states_TSH = cell(inputs_STE.transpose(0, 1), start)[0]
        lengths_S = torch.tensor([end - first for first, end in bounds])
        last_SH = states_TSH[lengths_S, torch.arange(len(here))]
        state_BH[here] = last_SH
        goes_on = []
        for place, user in enumerate(here):
            if number + 1 < len(sessions[user]):
                goes_on.append(place)
            else:
                states_of_last[user] = states_TSH[: int(lengths_S[place]) + 1, place]
        users = [here[place] for place in goes_on]
        gaps_S2 = torch.stack([_gap(batch, sessions[user], number) for user in users]) if users else torch.zeros(0, 2)
        memory_BM[users] = memory_cell.fold(last_SH[goes_on], gaps_S2, memory_BM[users])
    features_BF = torch.cat([state_BH, _attended(model, state_BH, states_of_last, memory_BM), memory_BM], dim=1)
    assert model.dense is not None
    contexts_BD = torch.relu(model.dense(features_BF))
    logits_BV = model.logits(contexts_BD)
    scores_BK, tokens_BK = logits_BV.topk(k, dim=1)
    return tokens_BK, scores_BK, logits_BV[:, FIRST_ITEM_TOKEN:].softmax(dim=1).gather(1, tokens_BK - FIRST_ITEM_TOKEN)


def _sessions(batch: HistoryBatch) -> list[list[tuple[int, int]]]:
    """Begin and end of every session of every user."""
    bounds, rows = batch.session_offsets.tolist(), batch.row_offsets.tolist()
    spans = list(itertools.pairwise(bounds))
    found: list[list[tuple[int, int]]] = []
    place = 0
    for end in rows[1:]:
        mine = []
        while place < len(spans) and spans[place][0] < end:
            mine.append(spans[place])
            place += 1
        found.append(mine)
    return found


def _inputs(model: NextEventModel, batch: HistoryBatch, first: int, end: int) -> Tensor:
    """What the cell is fed in one session [T, E], its begin included."""
    assert model.type_embedding is not None
    assert model.value_input is not None
    begin = torch.zeros(1, dtype=torch.int64)
    tokens_T = torch.cat([begin, batch.tokens_N[first:end]])
    types_T = torch.cat([begin, batch.event_types_N[first:end]])
    values_T = batch.values_N[first:end]
    missing_T = values_T.isnan()
    bound = MAX_STANDARDISED_VALUE
    standardised_T = ((values_T - model.value_mean) / model.value_std).clamp(-bound, bound).masked_fill(missing_T, 0)
    numbers_T2 = torch.stack([standardised_T, missing_T.float()], dim=1)
    numbers_T2 = torch.cat([torch.zeros(1, 2), numbers_T2])
    return model.item_embedding(tokens_T) + model.type_embedding(types_T) + model.value_input(numbers_T2)


def _gap(batch: HistoryBatch, sessions: list[tuple[int, int]], number: int) -> Tensor:
    """log(1 + seconds since the session before) / 10 and 1, or noughts for a user's first session."""
    if number == 0:
        return torch.zeros(2)
    first = sessions[number][0]
    seconds = max(0, int(batch.event_times_N[first]) - int(batch.event_times_N[first - 1]))
    return torch.tensor([float(torch.log1p(torch.tensor(float(seconds)))) / 10, 1.0])


def _attended(model: NextEventModel, state_BH: Tensor, states_of_last: list[Tensor], memory_BM: Tensor) -> Tensor:
    """The attention's context [B, H] of each user's last state, over the states of the last session and the memory."""
    attention = model.attention
    assert attention is not None
    assert attention.memory_key is not None
    assert attention.memory_value is not None
    lengths_B = torch.tensor([len(states) for states in states_of_last])
    states_BTH = pad_sequence(states_of_last, batch_first=True)
    keys_BTH = torch.cat([attention.memory_key(memory_BM)[:, None], attention.key(states_BTH)], dim=1)
    values_BTH = torch.cat([attention.memory_value(memory_BM)[:, None], states_BTH], dim=1)
    scores_BT = (keys_BTH @ attention.query(state_BH)[:, :, None]).squeeze(2) / state_BH.shape[1] ** 0.5
    padding_BT = torch.arange(keys_BTH.shape[1]) > lengths_B[:, None]
    weights_B1T = scores_BT.masked_fill(padding_BT, -torch.inf).softmax(dim=1)[:, None]
    return (weights_B1T @ values_BTH).squeeze(1)
