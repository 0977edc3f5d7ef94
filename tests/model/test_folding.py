"""Histories that go on from the past that their earlier sessions left: the same as the histories walked in one go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.model.explain import explain
from llm_spark.model.folding import folded, past_after
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from tests.model.histories import Row, batch_of, prefix, random_rows, row, with_features

NUM_TOKENS, NUM_EVENT_TYPES = 12, 4
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def small_model(**settings: object) -> NextEventModel:
    torch.manual_seed(3)
    sizes = {"embedding_size": 5, "hidden_size": 6, "dense_size": 7, "memory_size": 4, "dropout": 0.0}
    outcomes = [OutcomeConfig("returns", within_days=30), OutcomeConfig("spends", within_days=7, kind="amount")]
    config = ModelConfig(**{**sizes, "outcomes": outcomes, **settings})
    model = NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES, value_mean=5.0, value_std=3.0).eval()
    if model.memory_cell is not None:
        torch.nn.init.normal_(model.memory_cell.newcomer_M)
    return model.requires_grad_(False)


def cut_at(rows: list[Row], num_sessions: list[int]) -> tuple[HistoryBatch, HistoryBatch]:
    """The first so many sessions of each row, and the others."""
    firsts, rests = [], []
    for one_row, number in zip(rows, num_sessions, strict=True):
        begin = [*one_row["session_starts"], len(one_row["tokens"])][number]
        firsts.append(prefix(one_row, begin))
        by_event = ("tokens", "event_types", "values", "event_times", "features")
        rest = {name: column[begin:] for name, column in one_row.items() if name in by_event}
        starts = [start - begin for start in one_row["session_starts"][number:]]
        rests.append({**rest, "session_starts": starts, "first_target": 1})
    return batch_of(firsts), batch_of(rests)


KINDS = [
    {"cell": cell, "attention": attention, "use_values": True, "use_time_gaps": True, "features": ["price", "size"]}
    for cell in ("rnn", "lstm", "gru")
    for attention in ("dot", "additive", "none")
]
KINDS += [
    {"use_values": False, "use_time_gaps": False},
    {"memory_size": 0, "use_time_gaps": True},
    {"num_layers": 2, "cell": "lstm", "dense_size": 0},
    {"tied": True, "use_time_gaps": True},
    {"tied": True, "item_context": "attended"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values()))
def test_going_on_from_the_past_gives_what_walking_the_whole_history_gives(kind: dict[str, object]) -> None:
    model = small_model(**kind)
    rows = random_rows(40, NUM_TOKENS, NUM_EVENT_TYPES, seed=11)
    if "features" in kind:
        rows = with_features(rows, 2, seed=12)
    num_sessions = [i % len(one_row["session_starts"]) for i, one_row in enumerate(rows)]
    first, rest = cut_at(rows, num_sessions)
    rest = dataclasses.replace(rest, past=past_after(model, first))
    whole = batch_of(rows)
    assert 0 in num_sessions
    assert max(num_sessions) > 2
    ended = torch.arange(len(rows)) % 2 == 0
    torch.testing.assert_close(model.next_step(rest), model.next_step(whole), **TOLERANCE)
    torch.testing.assert_close(model.next_step(rest, ended), model.next_step(whole, ended), **TOLERANCE)
    torch.testing.assert_close(model.memory(rest), model.memory(whole), **TOLERANCE)
    elapsed = torch.full((len(rows),), 5000.0)
    torch.testing.assert_close(model.outcomes(rest, elapsed), model.outcomes(whole, elapsed), **TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), max_tokens=st.integers(1, 12), data=st.data())
def test_histories_folded_a_few_sessions_at_a_time_go_on_as_if_they_had_been_walked_in_one_go(
    seed: int, max_tokens: int, data: st.DataObject
) -> None:
    model = small_model(use_time_gaps=True)
    rows = random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed)
    numbers = [data.draw(st.integers(0, len(one_row["session_starts"]) - 1)) for one_row in rows]
    whole = batch_of(rows)
    rest = folded(model, whole, torch.tensor(numbers), max_tokens)
    _, expected = cut_at(rows, numbers)
    assert torch.equal(rest.tokens_N, expected.tokens_N)
    assert torch.equal(rest.session_offsets, expected.session_offsets)
    torch.testing.assert_close(model.next_step(rest), model.next_step(whole), **TOLERANCE)
    torch.testing.assert_close(
        rest.account(rest.row_offsets[1:] - 1), whole.account(whole.row_offsets[1:] - 1), **TOLERANCE
    )


def test_a_past_without_sessions_is_a_newcomers() -> None:
    model = small_model(use_time_gaps=True)
    batch = batch_of(random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed=2))
    begun = dataclasses.replace(batch, past=model.newcomers(5))
    torch.testing.assert_close(model.next_step(begun), model.next_step(batch))
    assert torch.equal(begun.log_gaps().isnan(), batch.log_gaps().isnan())


def test_a_past_of_sessions_that_overlap_remembers_the_latest_event_and_the_last_one() -> None:
    model = small_model()
    overlapping = row([[2, 3], [4]])
    overlapping["event_times"], overlapping["values"] = [100, 500, 300], [2.0, float("nan"), 1.5]
    past = past_after(model, batch_of([overlapping]))
    # By hand: the last event of the last session came at 300, the latest of all at 500.
    assert (past.first_time_B.item(), past.previous_time_B.item(), past.latest_time_B.item()) == (100, 300, 500)
    assert (past.num_sessions_B.item(), past.spent_B.item()) == (2, 3.5)


def test_rows_cut_from_a_batch_take_their_pasts_along() -> None:
    model = small_model(use_time_gaps=True)
    first, rest = cut_at(random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=4, max_sessions=1), [1] * 6)
    later = batch_of(random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=5))
    assert rest.num_tokens == 0
    batch = dataclasses.replace(later, past=past_after(model, first))
    torch.testing.assert_close(model.next_step(batch.rows(2, 5)), model.next_step(batch)[2:5], **TOLERANCE)


def test_reasons_of_a_history_that_goes_on_are_complete_and_the_past_is_part_of_the_memorys_share() -> None:
    model = small_model()
    rows = random_rows(8, NUM_TOKENS, NUM_EVENT_TYPES, seed=7)
    numbers = [len(one_row["session_starts"]) - 1 for one_row in rows]
    whole = batch_of(rows)
    rest = folded(model, whole, torch.tensor(numbers), 100)
    items = torch.tensor([[3, 5]] * len(rows))
    told = explain(model, rest, model.next_step(rest), items)
    row_N = torch.repeat_interleave(torch.arange(len(rows)), rest.row_offsets.diff())
    of_events = torch.zeros(len(rows), 2).index_add_(0, row_N, told.weight_NK)
    torch.testing.assert_close(told.baseline_BK + told.past_BK + of_events, told.score_BK, **TOLERANCE)
    expected = explain(model, whole, model.next_step(whole), items).score_BK
    torch.testing.assert_close(told.score_BK, expected, **TOLERANCE)
    is_newcomer = torch.tensor(numbers) == 0
    assert (told.past_BK[is_newcomer] == 0).all()
    assert (told.past_BK[~is_newcomer].abs() > 1e-6).any()
    assert torch.equal(told.memory_BK, told.past_BK)  # each row holds its current session alone
