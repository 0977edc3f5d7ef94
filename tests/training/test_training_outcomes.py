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
from llm_spark.model.calibration import amount_factors
from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.model.outcomes import Moments, OutcomeHead
from llm_spark.training.batches import ReaderSource, measure
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.loop import FitResult, Trainer, learning_rate
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
    num_targets = int(measured.target_counts_V.sum())
    objective = OutcomeObjective(config, num_targets, measured.num_labels_O, model.outcome_head)
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


def shoppers(num_users: int, seed: int) -> list[Row]:
    """Users who are all alike before they are asked about: a fifth of them will spend, and what they spend is lognormal."""
    rng = np.random.default_rng(seed)
    spent = rng.lognormal(4, 1, num_users) * (rng.random(num_users) < 0.2)
    return [asked(row([[2], [3]]), math.log1p(amount)) for amount in spent]


def test_the_mean_of_the_amounts_foretold_is_the_mean_of_what_was_spent() -> None:
    spends = OutcomeConfig("spends", kind="amount")
    config = dataclasses.replace(SMALL_MODEL, outcomes=[spends], next_item_weight=0.0)
    source = InMemory(in_batches(shoppers(2000, seed=1), 500), in_batches(shoppers(8000, seed=2), 2000))
    model, _ = fitted(source, config, num_epochs=3.0)
    with torch.no_grad():
        foretold = model.outcomes(batch_of(shoppers(4, seed=3)), torch.zeros(4))[:, 0]
    # The mean of a lognormal of 4 and 1 is exp(4.5); exp of the mean logarithm alone would be some 1.2.
    assert foretold.mean() == pytest.approx(0.2 * math.exp(4.5), rel=0.1)


def test_the_factors_are_those_of_the_weights_that_are_kept_and_of_all_ranks() -> None:
    config = ModelConfig(outcomes=[RETURNS, OutcomeConfig("spends", kind="amount")])
    head = OutcomeHead(4, config.outcomes)
    objective = OutcomeObjective(config, 1, torch.tensor([1, 1]), head)
    for outputs, labels in (([0.0, math.log(3)], [1.0, math.log(9)]), ([0.0, math.log(2)], [0.0, math.nan])):
        objective.add(torch.tensor([outputs]), Moments(torch.zeros(1), torch.zeros(1), torch.tensor([labels])))
    objective.finish_validation(ONE_RANK)
    # 8 were spent where 2 were foretold; what is not known yet does not count.
    torch.testing.assert_close(head.factor_O, torch.tensor([1.0, 4.0]))
    objective.begin_validation()
    objective.finish_validation(ONE_RANK)
    assert head.factor_O.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("spent", "foretold"), [(0.0, 5.0), (5.0, 0.0), (0.0, 0.0), (5.0, math.inf)])
def test_where_nothing_was_spent_or_foretold_the_factor_is_one(spent: float, foretold: float) -> None:
    sums = (torch.tensor([number], dtype=torch.float64) for number in (spent, foretold))
    assert amount_factors(*sums).tolist() == [1.0]


def test_rows_that_only_ask_leave_the_next_items_validation_as_it_is() -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS])
    rows = [asked(r, 1.0) for r in random_rows(12, NUM_TOKENS, 4, seed=1)]
    silent = [{**asked(r, 0.0), "first_target": len(r["tokens"])} for r in random_rows(6, NUM_TOKENS, 4, seed=2)]
    torch.manual_seed(1)
    model = NextEventModel(config, NUM_TOKENS, 4)
    found = []
    for validation in ([rows], [rows, silent], [silent, rows]):
        source = InMemory([rows], validation)
        objective = OutcomeObjective(config, 1, torch.tensor([1]))
        train_config = TrainConfig(num_epochs=1.0, device="cpu")
        trainer = Trainer(model, train_config, source, ONE_RANK, torch.ones(NUM_TOKENS), outcomes=objective)
        found.append((trainer.validate(), trainer._temperature()))
    assert found[0] == found[1] == found[2]


def test_rows_that_only_ask_are_learnt_from() -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS])
    silent = [{**asked(row([[token]]), float(token == 2)), "first_target": 1} for token in (2, 3) for _ in range(8)]
    source = InMemory([[*silent, asked(row([[4, 5]]), 0.0)], silent])
    model, _ = fitted(source, config, num_epochs=40.0)
    with torch.no_grad():
        found = model.outcomes(batch_of([row([[2]]), row([[3]])]), torch.zeros(2))[:, 0]
    assert found[0] > 0.9
    assert found[1] < 0.1


def test_what_stood_before_a_row_arrives_with_it(tmp_path: Path) -> None:
    rows = with_moments(random_rows(20, NUM_TOKENS, 4, seed=1), 1, seed=2)
    for number, one_row in enumerate(rows):
        one_row |= {"num_sessions_before": number, "value_sum_before": 7.5 * number, "first_event_time": 10**6}
        one_row |= {"latest_event_time_before": one_row["event_times"][0] - number}
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS])
    source = ReaderSource(small_job(tmp_path, rows, [], model_config=config), ONE_RANK)
    found = [numbers for batch in source.training(epoch=0) for numbers in batch.moment_numbers().tolist()]
    expected = [numbers for one_row in rows for numbers in batch_of([one_row]).moment_numbers().tolist()]
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-6)


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


@pytest.mark.parametrize("next_item_weight", [0.0, 1.0])
def test_an_outcomes_loss_that_is_no_number_is_refused_before_its_weights_are_kept(next_item_weight: float) -> None:
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS], next_item_weight=next_item_weight)
    model = NextEventModel(config, NUM_TOKENS, 4)

    def poison(progress: Progress | None) -> None:
        if progress is not None:
            with torch.no_grad():
                model.outcome_head.output.bias.fill_(math.nan)

    source = InMemory([openers(32, seed=1)], [openers(32, seed=2)])
    objective = OutcomeObjective(config, 64, torch.tensor([32]))
    settings = TrainConfig(device="cpu", num_epochs=1.0)
    trainer = Trainer(model, settings, source, ONE_RANK, torch.ones(NUM_TOKENS), poison, outcomes=objective)
    with pytest.raises(UserError, match="the outcomes' validation loss is nan after step 1"):
        trainer.fit()
    assert trainer._state.best.weights is None


def test_weight_decay_shrinks_matrices_and_leaves_biases_where_the_data_put_them() -> None:
    # Trained for outcomes alone, nothing but decay reaches the softmax.
    config = dataclasses.replace(SMALL_MODEL, outcomes=[RETURNS], next_item_weight=0.0)
    model = NextEventModel(config, NUM_TOKENS, 4)
    model.begin_at_popularity(torch.arange(NUM_TOKENS))
    weight, bias = model.head.weight.detach().clone(), model.head.bias.detach().clone()
    settings = TrainConfig(num_epochs=5.0, learning_rate=0.01, warmup_steps=0, weight_decay=2.0, device="cpu")
    objective = OutcomeObjective(config, 64, torch.tensor([64]))
    source = InMemory(in_batches(openers(64, seed=1)))
    Trainer(model, settings, source, ONE_RANK, torch.ones(NUM_TOKENS), outcomes=objective).fit()
    num_steps = 5 * source.num_steps(0)
    left = math.prod(1 - 2.0 * learning_rate(step, num_steps, settings) for step in range(num_steps))
    torch.testing.assert_close(model.head.weight, weight * left)
    assert torch.equal(model.head.bias, bias)


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
