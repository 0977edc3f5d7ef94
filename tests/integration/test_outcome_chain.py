"""Features and outcomes through every stage: what the tables hold against the raw log, and that stages agree on them."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.config.model import BASELINES
from llm_spark.config.outcomes import OUTCOMES_VERSION
from llm_spark.errors import DataError, UsageError
from llm_spark.model.artifact import load_artifact
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, PREDICTIONS, SEQUENCES, SESSIONS, TRAINING_METRICS
from llm_spark.scoring import FORETELL_DDL, LABELLED_MOMENTS_DDL, foretell, labelled_moments
from llm_spark.tables.warehouse import Warehouse, sql

SETTINGS = """
warehouse: {folder}/warehouse
ingest:
  paths: ["{folder}/log.jsonl"]
  format: jsonl
  columns: {{user: user, item: item, time: at, type: type, value: price, attributes: {{quantity: quantity}}}}
sessionize: {{num_buckets: 2}}
sequences: {{train_until: 2025-02-01, validation_until: 2025-02-15, min_item_count: 1, max_tokens: 8, burn_in_tokens: 2}}
model:
  embedding_size: 8
  hidden_size: 8
  dense_size: 8
  memory_size: 4
  features: [quantity]
  outcomes:
    - {{name: returns, within_days: 5}}
    - {{name: spend, event_types: [buy], within_days: 10, kind: amount}}
train: {{num_epochs: 2, batch_rows: 8, device: cpu}}
evaluate: {{num_replicates: 100}}
gate: {{enabled: false}}
"""
START = datetime(2025, 1, 1)
TRAIN_UNTIL, VALIDATION_UNTIL = datetime(2025, 2, 1), datetime(2025, 2, 15)


SILENT = {"once": [3.0], "gone": [2.0, 20.0]}
"""Users of few events, by their days."""


def log_of(num_users: int) -> list[dict[str, Any]]:
    """Visits of one to three events, minutes apart, over two months; a third of the quantities are missing or no numbers. And the silent."""
    rng = np.random.default_rng(5)
    lines = [
        {"user": user, "item": "i0", "at": (START + timedelta(days=day)).isoformat(), "type": "buy", "price": 5.0}
        for user, days in SILENT.items()
        for day in days
    ]
    for user in range(num_users):
        day = float(rng.uniform(0, 10))
        while day < 60:
            for minute in range(int(rng.integers(1, 4))):
                is_buy = bool(rng.random() < 0.4)
                lines.append(
                    {
                        "user": f"u{user:02}",
                        "item": f"i{rng.integers(6)}",
                        "at": (START + timedelta(minutes=round(day * 1440) + minute)).isoformat(),
                        "type": "buy" if is_buy else "view",
                        "price": float(rng.integers(1, 50)) if is_buy else None,
                        "quantity": [str(int(rng.integers(1, 9))), "many", None][int(rng.integers(3))],
                    }
                )
            day += float(rng.exponential(6)) + 0.2
    return lines


@dataclass(frozen=True)
class Run:
    warehouse: Warehouse
    config_file: Path
    log: list[dict[str, Any]]
    accounts: dict[str, Account]

    def config(self, *overrides: str) -> Config:
        return settings.load(self.config_file, list(overrides), ("ingest",))

    def events_of(self, user: str) -> list[dict[str, Any]]:
        mine = [line | {"time": datetime.fromisoformat(line["at"])} for line in self.log if line["user"] == user]
        return sorted(mine, key=lambda line: line["time"])


@pytest.fixture(scope="module")
def foretold(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("outcomes")
    log = log_of(24)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    file = folder / "settings.yaml"
    file.write_text(SETTINGS.format(folder=folder))
    config = settings.load(file, [], ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    stages = ("ingest", "sessionize", "sequences", "train", "evaluate", "score")
    accounts = {stage: run_stage(stage, warehouse, config) for stage in stages}
    return Run(warehouse, file, log, accounts)


def quantity(line: dict[str, Any]) -> float | None:
    return float(line["quantity"]) if line.get("quantity") not in (None, "many") else None


def test_every_baseline_is_measured_on_the_positions_of_the_model(foretold: Run) -> None:
    rows = foretold.warehouse.read(EVALUATION).where("name = 'recall@10'").collect()
    num_examples = {(row["recommender"], row["slice"]): row["num_examples"] for row in rows}
    assert {recommender for recommender, _ in num_examples} == {"model", *BASELINES}
    assert all(num == num_examples["model", slice_] for (_, slice_), num in num_examples.items())


def test_sessions_and_sequences_carry_the_numbers_of_the_log(foretold: Run) -> None:
    for row in foretold.warehouse.read(SESSIONS).where("user_id in ('u03', 'u11')").collect():
        lines = [e for e in foretold.events_of(row["user_id"]) if row["started_at"] <= e["time"] <= row["ended_at"]]
        assert row["event_features"] == [[quantity(line)] for line in lines]
    rows = foretold.warehouse.read(SEQUENCES).collect()
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    for row in rows:
        by_time = {int(e["time"].replace(tzinfo=UTC).timestamp()): e for e in foretold.events_of(row["user_id"])}
        assert row["features"] == [quantity(by_time[time]) for time in row["event_times"]]


def test_labels_tell_what_the_log_holds_after_each_moment_and_none_looks_beyond_its_split(foretold: Run) -> None:
    newest = max(datetime.fromisoformat(line["at"]) for line in foretold.log)
    ends = {"train": TRAIN_UNTIL, "validation": VALIDATION_UNTIL, "test": newest}
    begins = {"train": START, "validation": TRAIN_UNTIL, "test": VALIDATION_UNTIL}
    num_labels = dict.fromkeys(ends, 0)
    moments, asked_of = [], {split: set() for split in ends}
    for row in foretold.warehouse.read(SEQUENCES).collect():
        events, labels = foretold.events_of(row["user_id"]), row["outcome_labels"]
        assert len(labels) == 2 * len(row["outcome_places"])
        assert row["outcome_places"] or row["first_target"] < len(row["tokens"])
        for index, (place, elapsed) in enumerate(
            zip(row["outcome_places"], row["outcome_elapsed_seconds"], strict=True)
        ):
            seconds = row["event_times"][place] + elapsed
            asked = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
            assert begins[row["split"]] <= asked < ends[row["split"]]
            moments.append((row["user_id"], seconds))
            asked_of[row["split"]].add(row["user_id"])
            for label, days, is_amount in ((labels[2 * index], 5, False), (labels[2 * index + 1], 10, True)):
                until = asked + timedelta(days=days)
                if label is None:
                    # Snapshots lie a moment before the whole second that they are noted with.
                    assert until >= ends[row["split"]] - timedelta(seconds=1)
                    continue
                assert until < ends[row["split"]]
                follow = [e for e in events if asked < e["time"] <= until and (e["type"] == "buy" or not is_amount)]
                spent = sum(e["price"] for e in follow if e["price"] is not None) if is_amount else 0
                assert label == pytest.approx(math.log1p(spent) if is_amount else float(bool(follow)), rel=1e-5)
                num_labels[row["split"]] += 1
    assert all(number > 20 for number in num_labels.values())
    assert len(set(moments)) == len(moments)
    users = {line["user"] for line in foretold.log}
    assert asked_of == dict.fromkeys(ends, users), (
        "everybody was there early in training, and is asked about ever after"
    )
    (line,) = [remark for remark in foretold.accounts["sequences"].remarks if "'returns'" in remark]
    assert line.startswith("moments with a label of 'returns': train ")


def test_each_row_tells_what_the_log_holds_before_it(foretold: Run) -> None:
    rows = foretold.warehouse.read(SEQUENCES).collect()
    assert any(row["num_sessions_before"] for row in rows)
    visits: dict[str, list[datetime]] = {}
    for row in foretold.warehouse.read(SESSIONS).orderBy("ended_at").collect():
        visits.setdefault(row["user_id"], []).append(row["ended_at"])
    for row in rows:
        events = foretold.events_of(row["user_id"])
        before = [e for e in events if e["time"] < row["started_at"]]
        assert row["num_sessions_before"] == sum(ended < row["started_at"] for ended in visits[row["user_id"]])
        assert row["value_sum_before"] == sum(e["price"] for e in before if e["price"] is not None)
        latest = max((e["time"] for e in before), default=row["started_at"])
        told = row["first_event_time"], row["latest_event_time_before"]
        assert told == tuple(int(time.replace(tzinfo=UTC).timestamp()) for time in (events[0]["time"], latest))


def test_who_is_silent_is_asked_about_and_no_next_item_of_his_is_told_of(foretold: Run) -> None:
    rows = foretold.warehouse.read(SEQUENCES).where("split = 'test'").collect()
    predicting = [row for row in rows if row["first_target"] < len(row["tokens"])]
    num_positions = sum(len(row["tokens"]) - row["first_target"] for row in predicting)
    users = {row["user_id"] for row in predicting}
    assert len(predicting) < len(rows)
    assert users < {row["user_id"] for row in rows}
    account = foretold.accounts["evaluate"]
    assert account.rows_in == {"test_sequences": len(predicting)}
    assert f"{num_positions:,} test positions of {len(users)} users, each ranked among all 6 items" in account.remarks
    told = foretold.accounts["sequences"].remarks
    assert f"test: {len(rows) - len(predicting)} sequences that predict none are there for their outcomes" in told
    (moments,) = (
        foretold.warehouse.read(EVALUATION)
        .where("recommender = 'model' AND against IS NULL AND slice = 'all' AND name = 'returns.auc'")
        .collect()
    )
    asked = sum(label is not None for row in rows for label in row["outcome_labels"][::2])
    assert moments["num_examples"] == asked


def test_training_measures_the_outcomes_and_the_artifact_keeps_them(foretold: Run) -> None:
    names = {row["name"] for row in foretold.warehouse.read(TRAINING_METRICS).select("name").distinct().collect()}
    assert {"validation_loss_returns", "validation_auc_returns", "validation_loss_spend"} <= names
    model = champion(foretold.warehouse)
    assert [outcome.name for outcome in model.config.outcomes] == ["returns", "spend"]
    users = foretold.warehouse.read(PREDICTIONS).where("user_id IS NOT NULL").select("user_id").distinct()
    assert users.count() == 24 + len(SILENT)


def test_amounts_are_told_by_the_factor_that_validation_gave(foretold: Run) -> None:
    path = champion(foretold.warehouse).path
    factor = load_artifact(path).model.outcome_head.factor_O
    assert factor[0] == 1
    assert factor[1] > 1
    rows = foretold.warehouse.read(SEQUENCES).where("split = 'validation'")
    labelled = rows.mapInArrow(
        functools.partial(labelled_moments, artifact_path=path, batch_rows=64, foretold=True), LABELLED_MOMENTS_DDL
    )
    spent, told = (F.expm1(F.greatest(F.col(name), F.lit(0.0))) for name in ("label", "prediction"))
    sums = labelled.where("outcome = 'spend'").agg(F.sum(spent).alias("spent"), F.sum(told).alias("told")).first()
    assert float(factor[1]) == pytest.approx(sums["spent"] / sums["told"], rel=1e-3)


def test_a_model_that_an_earlier_version_taught_otherwise_is_told_to_be_trained_again(
    foretold: Run, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("earlier version" in remark for remark in foretold.accounts["score"].remarks)
    shutil.copytree(foretold.warehouse.root, tmp_path / "copy")
    copy = Warehouse(spark, str(tmp_path / "copy"))
    monkeypatch.setattr("llm_spark.model.artifact.OUTCOMES_VERSION", OUTCOMES_VERSION + 1)
    account = run_stage("score", copy, foretold.config(f"warehouse={copy.root}", "score.k=2"))
    (told,) = [remark for remark in account.remarks if "earlier version" in remark]
    assert told.endswith("run `llm-spark sequences` and `llm-spark train`")


def test_sequences_that_an_earlier_version_asked_otherwise_are_made_again(
    foretold: Run, spark: SparkSession, tmp_path: Path
) -> None:
    shutil.copytree(foretold.warehouse.root, tmp_path / "copy")
    copy = Warehouse(spark, str(tmp_path / "copy"))
    config = foretold.config(f"warehouse={copy.root}")
    origin = copy.origin(SEQUENCES)
    assert origin is not None
    del origin["made_from"]["outcomes_version"]
    lacking = [name for name in SEQUENCES.added_later if name.endswith(("_before", "_event_time"))]
    copy.replace(SEQUENCES, copy.read(SEQUENCES).withColumns({name: F.lit(None) for name in lacking}), origin)
    with pytest.raises(DataError, match=r"labels of model\.outcomes .* run `llm-spark sequences`"):
        run_stage("train", copy, config)
    assert not run_stage("sequences", copy, config).nothing_to_do
    assert copy.read(SEQUENCES).where("first_event_time IS NULL").isEmpty()
    assert not run_stage("train", copy, config).nothing_to_do


def test_scoring_foretells_in_spark_what_the_model_foretells_of_each_sequence(foretold: Run) -> None:
    path = champion(foretold.warehouse).path
    test = foretold.warehouse.read(SEQUENCES).where("split = 'test'")
    asked = test.withColumn("asked_at", F.element_at("event_times", -1) + F.lit(3 * 86_400))
    columns = ["tokens", "event_types", "values", "session_starts", "event_times", "features", "asked_at"]
    inputs = asked.select(F.col("sequence_id").alias("user_id"), *columns)
    kernel = functools.partial(foretell, artifact_path=path, batch_rows=5)
    found = {
        (row["user_id"], row["outcome"]): row["value"] for row in inputs.mapInArrow(kernel, FORETELL_DDL).collect()
    }
    alone = {}
    for batch in inputs.toArrow().to_batches():
        for index in range(batch.num_rows):
            for answer in foretell(iter([batch.slice(index, 1)]), path, 1):
                alone |= {(row["user_id"], row["outcome"]): row["value"] for row in answer.to_pylist()}
    assert found == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert {name for _, name in found} == {"returns", "spend"}
    assert all(0 < value < 1 for (_, name), value in found.items() if name == "returns")
    assert all(value >= 0 for (_, name), value in found.items() if name == "spend")


def test_the_same_settings_again_are_nothing_to_do_and_a_weight_touches_no_table(foretold: Run) -> None:
    reweighed = foretold.config("model.outcomes=[{name: returns, within_days: 5, weight: 2}, "
                                "{name: spend, event_types: [buy], within_days: 10, kind: amount}]")  # fmt: skip
    for config in (foretold.config(), reweighed):
        for stage in ("sessionize", "sequences"):
            assert run_stage(stage, foretold.warehouse, config).nothing_to_do


def test_stages_that_do_not_agree_on_features_or_outcomes_say_which_to_run(foretold: Run) -> None:
    with pytest.raises(DataError, match=r"sessions carry quantity: .* run `llm-spark sessionize`"):
        run_stage(
            "sequences",
            foretold.warehouse,
            foretold.config("ingest.columns.attributes.size=s", "model.features=[size]"),
        )
    with pytest.raises(DataError, match=r"takes the features size and the sequences hold quantity"):
        run_stage("train", foretold.warehouse, foretold.config("model.features=[size]"))
    with pytest.raises(DataError, match=r"labels of model\.outcomes .* run `llm-spark sequences`"):
        run_stage("train", foretold.warehouse, foretold.config("model.outcomes=[{name: returns, within_days: 6}]"))


@pytest.mark.parametrize(
    ("stage", "override", "complaint"),
    [
        (
            "sessionize",
            "model.features=[colour]",
            r"'colour', which is none of ingest\.columns\.attributes \(quantity\)",
        ),
        (
            "sequences",
            "model.outcomes=[{name: x, event_types: [rent]}]",
            r"'rent', of which training has none.*buy, view",
        ),
    ],
)
def test_a_feature_or_type_that_is_not_there_is_named(foretold: Run, stage: str, override: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        run_stage(stage, foretold.warehouse, foretold.config(override))


def test_outcomes_are_refused_where_no_time_ends_training(foretold: Run) -> None:
    file = foretold.config_file.parent / "left_out.yaml"
    file.write_text(
        foretold.config_file.read_text().replace(
            "train_until: 2025-02-01, validation_until: 2025-02-15", "split: leave_last_session_out"
        )
    )
    with pytest.raises(UsageError, match=r"give sequences\.split=time"):
        run_stage("sequences", foretold.warehouse, settings.load(file, [], ("ingest",)))


def test_the_artifact_of_the_run_foretells_as_much_as_it_was_taught(foretold: Run) -> None:
    loaded = load_artifact(champion(foretold.warehouse).path)
    assert loaded.model.config.features == ["quantity"]
    assert loaded.model.number_input.mean_K.shape == (2,)
    # Mean of the log gaps lies between those of a minute and of a month.
    assert math.log(60) < float(loaded.model.number_input.mean_K[0]) < math.log(31 * 86_400)
    assert 1 <= float(loaded.model.number_input.mean_K[1]) <= 8


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_gate_looks_at_what_the_champion_foretells_too(
    foretold: Run, spark: SparkSession, tmp_path: Path, weight: float
) -> None:
    shutil.copytree(foretold.warehouse.root, tmp_path / "copy")
    copy = Warehouse(spark, str(tmp_path / "copy"))
    former = champion(copy).model_id
    config = foretold.config(
        f"warehouse={copy.root}",
        *("gate.enabled=true", "train.seed=3", f"model.next_item_weight={weight}", "train.num_epochs=0.3"),
        *("evaluate.baselines=[popularity]", "gate.beats_popularity=none", "gate.max_loss=0.9"),
    )
    run_stage("train", copy, config)
    with contextlib.suppress(DataError):
        run_stage("evaluate", copy, config)
    value = {
        (row["recommender"], row["against"], row["name"]): row["value"]
        for row in copy.read(EVALUATION).where("slice = 'all'").collect()
    }
    judged = next(model for model in read_models(copy).rows if model.model_id != former)
    returns, spend = judged.json("metrics")["gate"]["outcomes"]
    assert returns["over_champion"]["value"] == value["model", "champion", "returns.auc"]
    assert returns["over_regression"]["value"] == value["model", "rfm_regression", "returns.auc"]
    theirs = value["champion", None, "spend.squared_error_log"]
    assert spend["over_champion"]["value"] == pytest.approx(
        1 - value["model", None, "spend.squared_error_log"] / theirs
    )
    assert ("it foretells outcomes alone" in judged.reason) == (weight == 0)


def test_a_regression_that_fails_is_left_out_and_tried_again(
    foretold: Run, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(foretold.warehouse.root, tmp_path / "copy")
    copy = Warehouse(spark, str(tmp_path / "copy"))
    config = foretold.config("evaluate.baselines=[popularity]")

    def fails(*_: object) -> None:
        raise RuntimeError("the fit has no end")

    with monkeypatch.context() as patched:
        patched.setattr("llm_spark.pipelines.outcome_evaluation.rfm_predictions", fails)
        account = run_stage("evaluate", copy, config)
    for name in ("returns", "spend"):
        assert f"'{name}' is not held against a regression, which failed: the fit has no end" in account.remarks
    assert not run_stage("evaluate", copy, config).nothing_to_do
    assert not copy.read(EVALUATION).where("against = 'rfm_regression'").isEmpty()
    assert run_stage("evaluate", copy, config).nothing_to_do


def test_the_readmes_query_of_outcomes_gives_users(foretold: Run) -> None:
    (query,) = re.findall(
        r"`(SELECT [^`]* FROM outcomes [^`]*)`", (Path(__file__).parents[2] / "README.md").read_text()
    )
    assert not sql(foretold.warehouse, query).isEmpty()
