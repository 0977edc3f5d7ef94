"""Outcome heads in the training loop: what they learn, how their loss is weighed, and what validation says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_spark.config import ModelConfig, OutcomeConfig, TrainConfig
from llm_spark.errors import UserError
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.model.outcomes import Moments
from llm_spark.training.batches import ReaderSource, measure
from llm_spark.training.distributed import Ranks
from llm_spark.training.loop import FitResult, Trainer
from llm_spark.training.outcomes import OUTCOMES_LOSS, OutcomeObjective, area_under_curve
from tests.model.histories import Row, batch_of, random_rows, row, with_moments
from tests.training.sequences import SMALL_MODEL, InMemory, small_job

NUM_TOKENS = 12
ONE_RANK = Ranks(0, 1, torch.device("cpu"))
RETURNS = OutcomeConfig("returns")


def asked(one_row: Row, label: float) -> Row:
    """The row, asked about after its last event."""
    last = len(one_row["tokens"]) - 1
    return {**one_row, "outcome_places": [last], "outcome_elapsed_seconds": [0], "outcome_labels": [[label]]}


def openers(num_users: int, seed: int) -> list[Row]:
    """Users who will return if their first visit, two visits ago, was of item 2, and will not if it was of item 3."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_users):
        first = int(rng.integers(2, 4))
        rows.append(asked(row([[first], [int(rng.integers(4, 12))], [int(rng.integers(4, 12))]]), float(first == 2)))
    return rows


def fitted(source: InMemory, config: ModelConfig, **settings: object) -> tuple[NextEventModel, FitResult]:
    measured = measure(source.training(0), NUM_TOKENS, ONE_RANK, config)
    torch.manual_seed(1)
    model = NextEventModel(config, NUM_TOKENS, 4)
    model.outcome_head.begin_at(measured.label_mean_O, measured.account_mean_A, measured.account_std_A)
    train_config = TrainConfig(
        **{"num_epochs": 30.0, "learning_rate": 0.02, "warmup_steps": 2, "device": "cpu", "patience": 100, **settings}
    )
    objective = OutcomeObjective(config, int(measured.target_counts_V.sum()), measured.num_labels_O)
    result = Trainer(model, train_config, source, ONE_RANK, measured.target_counts_V, outcomes=objective).fit()
    return model, result


def in_batches(rows: list[Row], size: int = 32) -> list[list[Row]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@pytest.mark.parametrize("next_item_weight", [0.0, 1.0])
def test_an_outcome_that_the_long_term_memory_tells_is_learnt_alone_and_beside_the_next_item(
    next_item_weight: float,
) -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS], next_item_weight=next_item_weight)
    # Next items are random here, so that validation on them would keep any weights.
    validation = [] if next_item_weight else in_batches(openers(64, seed=2))
    model, result = fitted(InMemory(in_batches(openers(128, seed=1)), validation), config)
    newcomers = openers(64, seed=3)
    with torch.no_grad():
        found = model.outcomes(batch_of(newcomers), torch.zeros(64))[:, 0]
    expected = torch.tensor([r["outcome_labels"][0][0] for r in newcomers])
    assert ((found > 0.5) == (expected == 1)).float().mean() > 0.95
    last = {metric.name: metric.value for metric in result.metrics}
    assert next_item_weight or last["validation_auc_returns"] > 0.99


def test_trained_alone_the_next_items_head_stays_as_it_was_and_the_outcomes_loss_chooses_the_weights() -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS], next_item_weight=0.0)
    # Validation contradicts training, so the first epoch is the best one.
    contradicting = [asked(r, 1 - r["outcome_labels"][0][0]) for r in openers(64, seed=2)]
    source = InMemory(in_batches(openers(128, seed=1)), in_batches(contradicting))
    model, result = fitted(source, config, num_epochs=10.0)
    torch.manual_seed(1)
    assert torch.equal(model.head.weight, NextEventModel(config, NUM_TOKENS, 4).head.weight)
    losses = {metric.step: metric.value for metric in result.metrics if metric.name == OUTCOMES_LOSS}
    assert result.best_recall is None
    assert losses[result.best_step] == min(losses.values())
    assert result.best_step < result.num_steps
    with torch.no_grad():
        found = model.outcomes(batch_of(contradicting), torch.zeros(64))[:, 0]
    labels = torch.tensor([r["outcome_labels"][0][0] for r in contradicting])
    kept = torch.nn.functional.binary_cross_entropy(found, labels).item()
    assert kept == pytest.approx(min(losses.values()), rel=1e-4)


def test_the_outcomes_loss_counts_as_a_mean_over_the_labels_of_the_training_split() -> None:
    # 300 targets and 20 labels: summed over targets and divided by their number, each label weighs 1 / 20, times 3.
    config = ModelConfig(outcomes=[OutcomeConfig("returns", weight=3.0)])
    objective = OutcomeObjective(config, 300, torch.tensor([20]))
    moments = Moments(torch.tensor([0, 1]), torch.zeros(2), torch.tensor([[1.0], [math.nan]]))
    loss = objective.loss(torch.tensor([[0.0], [5.0]]), moments)
    assert loss.item() / 300 == pytest.approx(3.0 * math.log(2) / 20)


def test_ranks_add_up_to_the_area_under_the_curve_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    # Scores apart by more than a bin's width, 1/256.
    scores = rng.permutation(np.arange(400)) / 50 - 4 + labels
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    expected = np.mean([(positive > negative) + (positive == negative) / 2 for positive, negative in pairs])
    objective = OutcomeObjective(ModelConfig(outcomes=[RETURNS]), 1, torch.tensor([1]))
    for some in (slice(0, 150), slice(150, 400)):
        outputs = torch.tensor(scores[some], dtype=torch.float32)[:, None]
        labels_LO = torch.tensor(labels[some], dtype=torch.float32)[:, None]
        objective.add(outputs, Moments(torch.zeros(len(outputs)), torch.zeros(len(outputs)), labels_LO))
    assert objective.finish_validation(ONE_RANK)["validation_auc_returns"] == pytest.approx(expected, abs=1e-3)


def test_tied_scores_count_half_and_one_label_alone_has_no_curve() -> None:
    assert area_under_curve(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])) == 0.5
    assert area_under_curve(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert area_under_curve(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0])) is None


def test_validation_without_a_closed_window_measures_nothing_of_the_outcome() -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS])
    open_windows = [asked(r, math.nan) for r in openers(32, seed=2)]
    _, result = fitted(InMemory(in_batches(openers(32, seed=1)), in_batches(open_windows)), config, num_epochs=1.0)
    names = {metric.name for metric in result.metrics}
    assert "validation_recall_at_20" in names
    assert not any("returns" in name for name in names)


def test_moments_arrive_with_their_rows_and_are_counted(tmp_path: Path) -> None:
    rows = with_moments(random_rows(30, NUM_TOKENS, 4, seed=1), 2, seed=2)
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS, OutcomeConfig("spends", kind="amount")])
    source = ReaderSource(small_job(tmp_path, rows, [], model_config=config), ONE_RANK)
    found = [moment for batch in source.training(epoch=0) for moment in told(batch)]
    assert sorted(found) == sorted(moment for one_row in rows for moment in told(batch_of([one_row])))
    labels = np.array([label for one_row in rows for label in one_row["outcome_labels"]])
    measured = measure(source.statistics_pass(), NUM_TOKENS, ONE_RANK, config)
    assert measured.num_labels_O.tolist() == (~np.isnan(labels)).sum(axis=0).tolist()
    np.testing.assert_allclose(measured.label_mean_O, np.nanmean(labels, axis=0), rtol=1e-6)


def told(batch: HistoryBatch) -> list[str]:
    """Each moment with the tokens of its row, as text."""
    moments = batch.moments
    row_L = torch.searchsorted(batch.row_offsets, moments.place_L, right=True) - 1
    return [
        repr((
            batch.tokens_N[batch.row_offsets[row] : batch.row_offsets[row + 1]].tolist(),
            int(place - batch.row_offsets[row]),
            elapsed,
            labels,
        ))
        for row, place, elapsed, labels in zip(
            row_L.tolist(), moments.place_L, moments.elapsed_L.tolist(), moments.labels_LO.tolist(), strict=True
        )
    ]  # fmt: skip


def test_an_outcome_without_any_label_is_said_in_one_line() -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS])
    rows = [asked(r, math.nan) for r in openers(8, seed=1)]
    with pytest.raises(UserError, match=r"nothing to learn of outcome 'returns': .* 30 days") as error:
        measure(iter([batch_of(rows)]), NUM_TOKENS, ONE_RANK, config)
    assert "\n" not in str(error.value)


def test_a_model_that_foretells_needs_the_numbers_of_labels() -> None:
    with pytest.raises(ValueError, match="numbers of their labels"):
        OutcomeObjective(ModelConfig(outcomes=[RETURNS]))
