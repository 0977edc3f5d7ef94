"""Whether a night trains, by each rule. Without Spark: the registry and the earlier decisions are given."""

from __future__ import annotations

from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from llm_spark.config import Config, DriftRules, NightlyConfig, TrainConfig
from llm_spark.errors import UsageError
from llm_spark.pipelines import night_training
from llm_spark.pipelines.night_training import Training, due_training
from llm_spark.transforms.drift_rules import NONE, RETRAIN, WARM_START, Advice, retraining_advice

DAY, NIGHT = date(2025, 1, 15), datetime(2025, 1, 16)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is there: a whole champion that was chosen on earlier events, and no night has trained."""
    found = SimpleNamespace(
        champion=SimpleNamespace(model_id="m1"),
        objection="",
        validation_until="2025-01-14 00:00:00",
        trained=[],
        advice=None,
    )
    monkeypatch.setattr(night_training, "read_models", lambda _: SimpleNamespace(champion=found.champion))
    monkeypatch.setattr(night_training, "why_it_cannot_score", lambda *_: found.objection)
    monkeypatch.setattr(night_training, "champion", lambda _: SimpleNamespace(validation_until=found.validation_until))
    monkeypatch.setattr(night_training, "_trained_days", lambda _: found.trained)
    monkeypatch.setattr(night_training, "latest_advice", lambda _: found.advice)
    return found


def due(rule: str) -> Training:
    warehouse: Any = None
    return due_training(warehouse, Config(nightly=NightlyConfig(train=rule)), DAY, NIGHT)


@pytest.mark.parametrize("rule", ["advised", "always", "never", "every 7 days"])
def test_without_a_model_that_can_score_every_rule_trains(known: SimpleNamespace, rule: str) -> None:
    known.objection = "its weights are damaged"
    assert due(rule).reason == "the champion cannot score: its weights are damaged"
    known.champion = None
    assert (due(rule).is_due, due(rule).reason) == (True, "there is no champion yet")


@pytest.mark.parametrize("rule", ["advised", "always", "never", "every 7 days"])
def test_no_rule_trains_a_model_that_could_only_lose_against_one_that_knows_its_future(
    known: SimpleNamespace, rule: str
) -> None:
    known.validation_until = "2025-01-16 00:01:00"
    assert not due(rule).is_due
    known.validation_until = "2025-01-16 00:00:00"
    assert due("always").is_due


@pytest.mark.parametrize("rule", ["advised", "always", "never", "every 7 days"])
def test_no_rule_trains_on_less_than_a_later_night_has_trained_on(known: SimpleNamespace, rule: str) -> None:
    known.trained = [date(2025, 1, 20)]
    assert not due(rule).is_due
    assert "the night of 2025-01-20 has trained on later events" in due("always").reason


def test_always_and_never_mean_what_they_say(known: SimpleNamespace) -> None:
    assert (due("always").is_due, due("never").is_due) == (True, False)


@pytest.mark.parametrize("action", [NONE, WARM_START, RETRAIN])
def test_advised_follows_the_advice_of_drift_and_trains_as_it_says(known: SimpleNamespace, action: str) -> None:
    known.advice = Advice(action, "why")
    training = due("advised")
    assert (training.action, training.reason, training.is_due) == (action, "why", action != NONE)
    for configured in (False, True):
        config = training.config(Config(train=TrainConfig(warm_start=configured)))
        assert config.train.warm_start == (action == WARM_START)


def test_all_other_rules_begin_as_train_warm_start_says(known: SimpleNamespace) -> None:
    for configured in (False, True):
        config = due("always").config(Config(train=TrainConfig(warm_start=configured)))
        assert config.train.warm_start == configured


def test_every_so_many_days_counts_from_the_last_night_that_trained_and_not_by_the_clock(
    known: SimpleNamespace,
) -> None:
    assert due("every 7 days").is_due, "none has trained yet"
    known.trained = [date(2025, 1, 8)]
    assert due("every 7 days").is_due
    assert not due("every 8 days").is_due
    assert due("every 8 days").reason == "nightly.train is 'every 8 days', and the night of 2025-01-08 trained last"


def test_until_drift_can_judge_anything_advised_trains_weekly(known: SimpleNamespace) -> None:
    known.advice = retraining_advice([], DriftRules())
    known.trained = [date(2025, 1, 8)]
    assert due("advised").is_due
    known.trained = [date(2025, 1, 9)]
    assert not due("advised").is_due
    assert (
        due("advised").reason
        == "drift could judge nothing yet, so every 7 days, and the night of 2025-01-09 trained last"
    )


def test_broken_data_are_trained_on_only_where_always_is_asked_for(known: SimpleNamespace) -> None:
    known.advice = Advice(NONE, "The data look broken.", is_withheld=True)
    assert [due(rule).is_due for rule in ("advised", "every 7 days", "always")] == [False, False, True]
    assert due("every 7 days").reason == "The data look broken."


@pytest.mark.parametrize("rule", ["sometimes", "every day", "every 0 days", "every -1 days"])
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match=r"nightly\.train is .*choose one of"):
        NightlyConfig(train=rule)
