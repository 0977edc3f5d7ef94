"""Settings: merging, and each mistake's one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import MISSING

from llm_spark import config
from llm_spark.errors import UsageError
from llm_spark.simulation import SimulationConfig

CONF = Path(__file__).parents[1] / "conf"


def message(*overrides: str, path: Path | None = None, needs: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as refused:
        config.load(path, list(overrides), needs)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {seed: 5, batch_rows: 8}\n")
    loaded = config.load(file, ["train.seed=7"])
    assert (loaded.train.seed, loaded.train.batch_rows, loaded.train.num_ranks) == (7, 8, 1)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trian.seed=1", "train.seed"),
        ("train.seeds=1", "train.seed"),
        ("cell=lstm", "model.cell"),
        ("ingest.colums.user=a", "ingest.columns.user"),
        ("ingest.missing.uesr=drop", "ingest.missing.user"),
        ("ingest.normalize_item.strip=true", "ingest.normalise_item.strip"),
        ("sessionize.bots.max_event=9", "sessionize.bots.max_events"),
        ("sequences.clip_value.method=mad", "sequences.clip_values.method"),
        ("drift.eror.min_psi=1", "drift.error.min_psi"),
        ("model.outcomes=[{name: returns, within_day: 3}]", "model.outcomes.within_days"),
    ],
)
def test_an_unknown_key_is_refused_naming_the_nearest_valid_one(override: str, nearest: str) -> None:
    assert message(override).endswith(f"'{nearest}'")


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {sede: 5}\n")
    assert str(file) in message(path=file)
    assert "train.seed" in message(path=file)


def test_outcomes_are_read_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {outcomes: [{name: returns, within_days: 7}, {name: spend, kind: amount, weight: 0.5}]}\n")
    returns, spend = config.load(file, []).model.outcomes
    assert returns == config.OutcomeConfig("returns", [], 7.0, "probability", 1.0)
    assert spend == config.OutcomeConfig("spend", [], 30.0, "amount", 0.5)
    (buys,) = config.load(file, ["model.outcomes=[{name: buys, event_types: [buy]}]"]).model.outcomes
    assert buys == config.OutcomeConfig("buys", ["buy"])


def test_what_is_not_offered_again_is_nothing_all_that_was_seen_or_the_items_of_some_event_types() -> None:
    def excluded(*given: str) -> tuple[str, ...] | None:
        return config.load(None, list(given)).score.excluded_types

    assert (excluded(), excluded("score.exclude=none")) == ((), ())
    assert excluded("score.exclude=seen") is None
    assert excluded("score.exclude=[purchase, rent]") == ("purchase", "rent")
    assert excluded("score.exclude=[seen]") == ("seen",), "in a list it is the name of an event type"


def test_a_value_between_two_known_ones_is_not_told_to_a_model_that_foretells_outcomes() -> None:
    outcomes = "model.outcomes=[{name: spends, kind: amount}]"
    told = "ingest.missing.value is 'interpolate': give keep or forward where there are model.outcomes"
    with pytest.raises(UsageError) as refused:
        config.load(None, [outcomes, "ingest.missing.value=interpolate", "ingest.columns.value=price"])
    assert str(refused.value) == told
    config.load(None, [outcomes, "ingest.missing.value=forward", "ingest.columns.value=price"])


def test_the_gate_decides_by_a_metric_that_evaluate_measures() -> None:
    loaded = config.load(None, ["evaluate.ks=[3,12]"])
    assert loaded.gate.chosen_metric(loaded.evaluate.ks) == "recall@12", "the whole list that is shown"
    assert config.load(None, ["gate.metric=mrr@3", "evaluate.ks=[3,12]"]).gate.metric == "mrr@3"
    assert message("gate.metric=mrr@7") == "gate.metric is 'mrr@7': evaluate.ks has 5, 10, 20; choose one of them"


def test_missing_settings_are_all_listed_at_once() -> None:
    text = message(needs=("ingest",))
    for key in ("ingest.paths", "ingest.format", "ingest.columns.user", "ingest.columns.item", "ingest.columns.time"):
        assert key in text


def test_settings_that_a_stage_does_not_need_may_be_missing() -> None:
    assert config.load(None, [], ("train",)).ingest.paths == MISSING


@pytest.mark.parametrize(
    "override",
    [
        "model.cell=elman",
        "model.initial_embedding=glove",
        "model.word2vec_size=8",
        "evaluate.baselines=[popularity,knn]",
        "evaluate.baselines=[markov,markov]",
        "score.reasons=-1",
        "score.reasons=21",
        "score.exclude=bought",
        "score.exclude=[]",
        "score.exclude=[[purchase]]",
        "score.max_per_category=-1",
        "score.max_per_category=2",
        "score.min_probability=1",
        "score.fallback_days=-1",
        "evaluate.num_replicates=39",
        "evaluate.ks=[]",
        "train.num_epochs=0",
        "train.num_epochs=.inf",
        "train.learning_rate=.inf",
        "train.weight_decay=.inf",
        "train.negative_power=.inf",
        "train.average_decay=1",
        "model.cosine_scale=.inf",
        "train.seed=abc",
        "sequences.burn_in_tokens=0",
        "sequences.train_until=2025-01-01",
        "sequences.split=by_time",
        "maintain.retention_hours=-1",
        "maintain.target_file_mib=0",
        "maintain.keep_models=-1",
        "gate.metric=clicks",
        "gate.max_loss=-0.1",
        "gate.beats_popularity=maybe",
        "gate.missing_baseline=ignore",
        "nonsense",
        "ingest.filters=[a",
        "warehouse=${nothing}",
        "ingest.earliest_time=soon",
        "ingest.csv_delimiter=||",
        "ingest.pseudonymise_also=[user]",
        "ingest.pseudonymise_also=[attributes.friend]",
        "ingest.missing.user=keep",
        "ingest.missing.user=",
        "ingest.missing.item=rejct",
        "ingest.missing.item=Drop",
        "ingest.missing.time=now",
        "ingest.missing.type=forward",
        "ingest.missing.type=reject",
        "ingest.missing.value=forward",
        "ingest.missing.attributes.agent=drop",
        "ingest.normalise_item.replace=[[a]]",
        "ingest.normalise_item.replace=[['', b]]",
        "sessionize.gap_seconds=10000000000",
        "sessionize.max_length_seconds=10000000000000",
        "sessionize.bots.max_events_per_minute=-1",
        "sessionize.bots.max_events=1000",
        "sequences.clip_values.method=mean",
        "sequences.clip_values.num_mads=0",
        "sequences.clip_values.low_quantile=0.9999",
        "as_of=yesterday",
        "drift.window_days=0",
        "drift.min_references=3",
        "drift.num_references=3",
        "drift.exclude_dates=[2025-02-30]",
        "drift.max_unknown_rise=2",
        "drift.warning.false_alarm_rate=0",
        "drift.error.min_volume_ratio=0.5",
        "drift.rules.retrain.clicks=error",
        "drift.rules.warm_start.hit_rate=sometimes",
    ],
)
def test_a_wrong_value_is_refused_in_one_line(override: str) -> None:
    assert override.split("=")[0] in message(override)


def test_gradients_may_be_clipped_to_any_norm_which_is_not_at_all() -> None:
    assert config.load(None, ["train.clip_norm=.inf"]).train.clip_norm == float("inf")


def test_times_are_refused_for_a_split_that_is_not_by_time() -> None:
    times = ["sequences.train_until=2025-01-01", "sequences.validation_until=2025-01-02"]
    assert "sequences.split is 'leave_last_event_out'" in message("sequences.split=leave_last_event_out", *times)


def test_a_value_that_is_filled_by_no_number_is_refused() -> None:
    for text in ("many", "nan", "inf"):
        assert "ingest.missing.value" in message("ingest.columns.value=price", f"ingest.missing.value={text}")


def test_missing_fields_are_filled_by_what_is_no_rules_name() -> None:
    given = ["ingest.missing.type=view", "ingest.columns.value=price", "ingest.missing.value=0"]
    missing = config.load(None, given).ingest.missing
    assert (missing.type, missing.value, missing.user) == ("view", "0", "reject")


def test_attributes_are_all_rejected_or_all_dropped_for_their_reason_is_one() -> None:
    named = ["ingest.columns.attributes={a: a, b: b}"]
    assert "not both" in message(*named, "ingest.missing.attributes={a: drop, b: reject}")
    assert config.load(None, [*named, "ingest.missing.attributes={a: drop, b: none}"]).ingest.missing.attributes


def test_a_file_that_is_missing_or_no_yaml_is_refused(tmp_path: Path) -> None:
    assert "no config file" in message(path=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    assert "not valid YAML" in message(path=broken)
    broken.write_text("- a\n- b\n")
    assert "does not hold settings" in message(path=broken)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_file_is_valid_and_can_be_shown(file: Path) -> None:
    assert "warehouse:" in config.show(config.load(file))


def test_shipped_files_show_what_scores_can_be_asked_for() -> None:
    finance, health, retail = (config.load(CONF / f"{name}.yaml") for name in ("finance", "health", "online_retail"))
    assert [(o.name, o.kind) for o in finance.model.outcomes] == [("spend", "amount"), ("declined", "probability")]
    assert [o.name for o in health.model.outcomes] == ["comes_back", "has_a_lab_test"]
    assert (health.score.min_probability, health.score.fallback_days) == (0.02, 0)
    assert (retail.score.fallback_days, retail.score.exclude) == (28, "none")


def test_the_settings_that_a_shipped_file_only_mentions_are_valid(tmp_path: Path) -> None:
    text = (CONF / "online_retail.yaml").read_text()
    file = tmp_path / "all.yaml"
    file.write_text(
        text.replace("  # exclude", "  exclude").replace("  # deny", "  deny").replace("  # allow", "  allow")
    )
    rules = config.load(file).score
    assert (rules.excluded_types, rules.deny_items, rules.allow_items) == (("purchase",), "recalled", "campaign.csv")


def test_the_reference_configuration_is_the_textbook_model() -> None:
    loaded = config.load(CONF / "reference.yaml")
    model, train = loaded.model, loaded.train
    assert (loaded.sequences.max_items, loaded.sequences.max_tokens) == (10_000, 100)
    assert (model.embedding_size, model.cell, model.hidden_size, model.dense_size) == (300, "lstm", 512, 128)
    assert (train.batch_rows, train.num_epochs) == (32, 10)


def test_simulation_settings_are_refused_in_the_same_way() -> None:
    assert config.from_overrides(SimulationConfig, ["num_users=5", "num_items=200"]).num_users == 5
    for overrides in (["num_user=5"], ["num_users=0"], ["num_users=x"], ["num_users"]):
        with pytest.raises(UsageError, match="num_user"):
            config.from_overrides(SimulationConfig, overrides)
