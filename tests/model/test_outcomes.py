"""The outcome heads: which state they are asked of, their losses by hand, and what is kept of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.errors import UsageError
from llm_spark.model.artifact import WEIGHTS, load_artifact, save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.model.outcomes import Moments, outcome_losses
from tests.model.histories import batch_of, prefix, random_rows, row, with_moments

NUM_TOKENS, NUM_EVENT_TYPES = 12, 4
RETURNS = OutcomeConfig("returns", within_days=30)
SPENDS = OutcomeConfig("spends", ["purchase"], within_days=7, kind="amount", weight=0.5)


def small_model(*outcomes: OutcomeConfig) -> NextEventModel:
    torch.manual_seed(3)
    config = ModelConfig(embedding_size=5, hidden_size=6, dense_size=7, memory_size=4, outcomes=list(outcomes))
    return NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES).eval()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_training_asks_at_a_moment_is_what_scoring_answers_of_the_history_up_to_then(seed: int) -> None:
    model = small_model(RETURNS, SPENDS)
    rows = with_moments(random_rows(4, NUM_TOKENS, NUM_EVENT_TYPES, seed), 2, seed)
    with torch.no_grad():
        _, _, outputs_LO = model.forward_heads(batch_of(rows))
        trained = model.outcome_head.predictions(outputs_LO)
        scored = [
            model.outcomes(batch_of([prefix(one_row, place + 1)]), torch.tensor([float(elapsed)]))
            for one_row in rows
            for place, elapsed in zip(one_row["outcome_places"], one_row["outcome_elapsed_seconds"], strict=True)
        ]
    torch.testing.assert_close(trained, torch.cat([trained[:0], *scored]))


def test_moments_leave_the_next_items_contexts_as_they_are() -> None:
    model = small_model(RETURNS)
    plain = random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)
    batch = batch_of(with_moments(random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed=1), 1, seed=2))
    with torch.no_grad():
        contexts, targets, outputs = model.forward_heads(batch)
        expected_contexts, expected_targets = model.forward_states(batch_of(plain))
    assert len(outputs) == len(batch.moments.place_L)
    torch.testing.assert_close(contexts, expected_contexts)
    assert torch.equal(targets, expected_targets)


def test_the_time_that_the_user_has_been_silent_changes_the_answer() -> None:
    model = small_model(RETURNS)
    with torch.no_grad():
        now, later = model.outcomes(batch_of([row([[2, 3]])] * 2), torch.tensor([0.0, 40 * 86_400.0]))
    assert abs(float(now - later)) > 1e-4


def test_the_account_of_a_history_counts_visits_and_adds_up_what_is_known() -> None:
    shopper = row([[2, 3], [4]])
    shopper["event_times"], shopper["values"] = [1000, 1020, 4000], [5.0, math.nan, 7.5]
    other = row([[5]], value=-3.0)
    batch = batch_of([other, shopper])
    # By hand: a visit, no time, less than nothing spent; then after each event of the shopper.
    expected = [[1, 0, 0], [1, 0, 5], [1, 20, 5], [2, 3000, 12.5]]
    torch.testing.assert_close(batch.account(torch.arange(4)), torch.tensor(expected, dtype=torch.float32).log1p())


def test_where_sessions_overlap_an_account_reaches_to_the_latest_event_so_far() -> None:
    overlapping = row([[2, 3], [4]])
    overlapping["event_times"] = [100, 500, 300]
    seconds = batch_of([overlapping, row([[5, 6]])]).account(torch.arange(5))[:, 1]
    torch.testing.assert_close(seconds.expm1(), torch.tensor([0.0, 400.0, 400.0, 0.0, 60.0]))


def test_a_row_that_begins_late_goes_on_counting_from_what_stood_before_it() -> None:
    late = {**row([[2, 3], [4]]), "num_sessions_before": 5, "value_sum_before": 100.0}
    late |= {"event_times": [1000, 1020, 4000], "values": [5.0, math.nan, 7.5]}
    late |= {"first_event_time": 200, "latest_event_time_before": 1010}
    batch = batch_of([row([[5]], value=1.0), late])
    # By hand: where sessions overlapped, the latest event may have stood before the row.
    expected = [[1, 0, 1], [6, 810, 105], [6, 820, 105], [7, 3800, 112.5]]
    torch.testing.assert_close(batch.account(torch.arange(4)), torch.tensor(expected, dtype=torch.float32).log1p())
    torch.testing.assert_close(
        batch.rows(1, 2).account(torch.arange(3)), torch.tensor(expected[1:], dtype=torch.float32).log1p()
    )


def test_losses_equal_numbers_worked_by_hand_and_censored_moments_carry_none() -> None:
    # log(1 + e^-1) = 0.313262 for a yes of logit 1; log(1 + e^0.5) = 0.974077 for a no of logit 0.5; (2 - 0.5)^2 = 2.25
    outputs = torch.tensor([[1.0, 2.0], [0.5, 9.0], [7.0, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.5], [0.0, math.nan], [math.nan, 3.0]])
    losses = outcome_losses(outputs, labels, torch.tensor([False, True]))
    torch.testing.assert_close(losses, torch.tensor([0.313262 + 0.974077, 2.25]), rtol=0, atol=1e-5)
    losses.sum().backward()
    # sigmoid(1) - 1, sigmoid(0.5) - 0, and 2 (2 - 0.5)
    expected = torch.tensor([[-0.268941, 3.0], [0.622459, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(outputs.grad, expected, rtol=0, atol=1e-5)


def test_an_untrained_head_that_begins_at_the_means_answers_them() -> None:
    model = small_model(RETURNS, SPENDS)
    model.outcome_head.begin_at(torch.tensor([0.2, math.log(11)]), torch.zeros(4), torch.ones(4))
    with torch.no_grad():
        model.outcome_head.output.weight.zero_()
        found = model.outcomes(batch_of([row([[2, 3]])]), torch.zeros(1))
    torch.testing.assert_close(found, torch.tensor([[0.2, 10.0]]))


def test_the_artifact_keeps_the_outcomes_and_answers_as_before(tmp_path: Path) -> None:
    model = small_model(RETURNS, SPENDS)
    save_manifest(str(tmp_path), save_content(str(tmp_path), model, {}, {}))
    loaded = load_artifact(str(tmp_path)).model
    assert loaded.config.outcomes == [RETURNS, SPENDS]
    batch, elapsed = batch_of(random_rows(3, NUM_TOKENS, NUM_EVENT_TYPES, seed=4)), torch.tensor([0.0, 10.0, 1e6])
    with torch.no_grad():
        assert torch.equal(loaded.outcomes(batch, elapsed), model.outcomes(batch, elapsed))


def test_amounts_are_told_times_the_factor_that_the_artifact_keeps_and_probabilities_are_not(tmp_path: Path) -> None:
    model = small_model(RETURNS, SPENDS)
    batch = batch_of(random_rows(3, NUM_TOKENS, NUM_EVENT_TYPES, seed=4))
    with torch.no_grad():
        model.outcome_head.output.bias += 2.0
        before = model.outcomes(batch, torch.zeros(3))
        model.outcome_head.calibrate(torch.tensor([7.0, 3.5]))
    save_manifest(str(tmp_path), save_content(str(tmp_path), model, {}, {}))
    with torch.no_grad():
        found = load_artifact(str(tmp_path)).model.outcomes(batch, torch.zeros(3))
    assert (before[:, 1] > 0).all()
    torch.testing.assert_close(found, before * torch.tensor([1.0, 3.5]))


def test_the_artifact_of_an_earlier_version_has_no_factors_and_answers_as_it_did(tmp_path: Path) -> None:
    model = small_model(RETURNS, SPENDS)
    batch = batch_of(random_rows(3, NUM_TOKENS, NUM_EVENT_TYPES, seed=4))
    with torch.no_grad():
        expected = model.outcomes(batch, torch.zeros(3))
    del model.outcome_head._buffers["factor_O"]
    save_manifest(str(tmp_path), save_content(str(tmp_path), model, {}, {}))
    assert "factor_O" not in str(sorted(load_file(tmp_path / WEIGHTS)))
    with torch.no_grad():
        assert torch.equal(load_artifact(str(tmp_path)).model.outcomes(batch, torch.zeros(3)), expected)


def test_a_user_without_events_has_no_answer() -> None:
    model = small_model(RETURNS)
    nobody = {name: [] for name in ("tokens", "event_types", "values", "event_times", "session_starts")}
    with torch.no_grad():
        found = model.outcomes(batch_of([row([[2]]), {**nobody, "first_target": 1}]), torch.zeros(2))
    assert found.isnan().tolist() == [[False], [True]]


def test_a_model_without_outcomes_says_so() -> None:
    with pytest.raises(ValueError, match=r"trained without model\.outcomes"):
        small_model().outcomes(batch_of([row([[2]])]), torch.zeros(1))


def test_moments_of_some_rows_are_those_that_lie_in_them() -> None:
    rows = with_moments(random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=9), 1, seed=9)
    whole, part = batch_of(rows), batch_of(rows[2:4])
    cut = whole.moments.between(int(whole.row_offsets[2]), int(whole.row_offsets[4]))
    assert torch.equal(cut.place_L, part.moments.place_L)
    assert torch.equal(cut.elapsed_L, part.moments.elapsed_L)
    torch.testing.assert_close(cut.labels_LO, part.moments.labels_LO, equal_nan=True)


@pytest.mark.parametrize("place", [-1, 2])
def test_a_moment_outside_its_row_is_refused(place: int) -> None:
    asked = {"outcome_places": [place], "outcome_elapsed_seconds": [0], "outcome_labels": [[1.0]]}
    with pytest.raises(ValueError, match="outcome_places names a position outside its row"):
        batch_of([{**row([[2, 3]]), **asked}, {**row([[4, 5]]), **asked, "outcome_places": [0]}])


def test_labels_that_do_not_fit_the_moments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels and outcome_elapsed_seconds 2 times for 2 moments of 2 outcomes"):
        Moments.from_columns(
            places=torch.tensor([0, 1]),
            offsets=torch.tensor([0, 2]),
            elapsed_seconds=torch.tensor([0, 0]),
            labels=torch.ones(3),
            row_offsets=torch.tensor([0, 2]),
            num_outcomes=2,
        )


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"name": " "}, "give each outcome a name"),
        ({"kind": "chance"}, "kind"),
        ({"within_days": 0.0}, "within_days"),
        ({"weight": math.inf}, "weight"),
    ],
)
def test_an_outcome_that_makes_no_sense_is_refused(wrong: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        dataclasses.replace(RETURNS, **wrong)


def test_two_outcomes_of_one_name_and_a_model_that_learns_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="name each outcome differently"):
        ModelConfig(outcomes=[RETURNS, RETURNS])
    with pytest.raises(UsageError, match=r"model\.next_item_weight"):
        ModelConfig(next_item_weight=0.0)
