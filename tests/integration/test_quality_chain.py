"""A log of a few dozen lines with every kind of noise, through ingest, sessionize and sequences, worked out by hand."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import DataError, UsageError
from llm_spark.model.artifact import load_artifact
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.stages import run_stage
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import (
    DATA_QUALITY,
    EVENTS,
    EVENTS_REJECTED,
    PREDICTIONS,
    SEQUENCES,
    SESSIONS,
    SESSIONS_SET_ASIDE,
)
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.quality import Bounds

SETTINGS = """
warehouse: {folder}/warehouse
ingest:
  paths: ["{folder}/log.jsonl"]
  format: jsonl
  columns: {{user: user, item: item, time: at, type: type, value: price, attributes: {{agent: agent}}}}
  normalise_item: {{strip: true, case_fold: true, replace: [['\\.0$', '']]}}
  missing: {{user: drop, item: reject, type: view, value: interpolate, attributes: {{agent: unknown}}}}
  max_rejected_fraction: 0.02
sessionize:
  num_buckets: 2
  collapse_repeats: true
  bots: {{max_events_per_minute: 30}}
sequences:
  train_until: 2025-01-02
  validation_until: 2025-01-03
  min_item_count: 1
  clip_values: {{method: mad, num_mads: 3, min_values: 5}}
"""


def record(user: str | None, item: str | None, at: str, price: Any = None, **more: Any) -> dict[str, Any]:
    return {"user": user, "item": item, "at": f"2025-01-{at}", "price": price, **more}


LOG = [
    record("u", " A1.0", "01 10:00:00", 1.0),
    record("u", "a1\t", "01 10:01:00", 5.0, agent="phone"),  # the same again
    record("u", "B2", "01 10:02:00"),  # halfway between 1 and 3
    record("u", "c3", "01 10:04:00", 3.0),
    record("v", "a1", "01 11:00:00", 2.0),
    record("v", "b2", "01 11:01:00", 4.0),
    record("v", "c3", "01 11:02:00", 5.0),
    record("u", "a1", "02 10:00:00", "none"),  # the last known is 3
    record("u", "b2", "02 10:01:00", 1000.0),  # training has 1 2 3 4 5: up to 3 + 3 x 1
    record("u", "c3", "03 10:00:00"),
    record("u", "b2", "03 10:01:00", 2.0, type="buy"),
    *[record(None, "a1", "01 12:00:00", place) for place in range(3)],
    record("w", "\u00a0", "01 12:00:00"),
    *[record("bot", f"item{place}", f"01 13:00:{place:02}", 1e9) for place in range(40)],
]


@dataclass(frozen=True)
class Run:
    warehouse: Warehouse
    config_file: Path
    accounts: dict[str, Account]

    def config(self, *overrides: str) -> Config:
        return settings.load(self.config_file, list(overrides), ("ingest",))


@pytest.fixture(scope="module")
def cleaned(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("quality")
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    file = folder / "settings.yaml"
    file.write_text(SETTINGS.format(folder=folder))
    config = settings.load(file, [], ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    accounts = {stage: run_stage(stage, warehouse, config) for stage in ("ingest", "sessionize", "sequences")}
    return Run(warehouse, file, accounts)


def test_dropped_records_are_no_fault_and_events_keep_what_was_logged(cleaned: Run) -> None:
    # 4 of 55 records are not accepted, more than max_rejected_fraction; 3 of them are dropped as asked.
    assert cleaned.accounts["ingest"].rejected == {"missing_item": 1, "missing_user": 3}
    assert cleaned.warehouse.read(EVENTS_REJECTED).count() == 4
    events = cleaned.warehouse.read(EVENTS).where("user_id = 'u'").orderBy("event_time").collect()
    assert [row["item_id"] for row in events] == ["a1", "a1", "b2", "c3", "a1", "b2", "c3", "b2"]
    assert [row["value"] for row in events] == [1.0, 5.0, None, 3.0, None, 1000.0, None, 2.0]
    assert [row["event_type"] for row in events] == ["view"] * 7 + ["buy"]
    assert [row["attributes"]["agent"] for row in events[:2]] == ["unknown", "phone"]


def test_sessions_hold_no_repeats_and_no_bot_and_nothing_is_lost(cleaned: Run) -> None:
    rows = cleaned.warehouse.read(SESSIONS).orderBy("started_at").collect()
    assert [(row["user_id"], row["item_ids"], row["num_collapsed"]) for row in rows] == [
        ("u", ["a1", "b2", "c3"], 1),
        ("v", ["a1", "b2", "c3"], 0),
        ("u", ["a1", "b2"], 0),
        ("u", ["c3", "b2"], 0),
    ]
    assert rows[0]["event_values"] == [1.0, None, 3.0]
    (aside,) = cleaned.warehouse.read(SESSIONS_SET_ASIDE).collect()
    assert (aside["user_id"], aside["num_events"], aside["reason"]) == ("bot", 40, "too_fast")
    assert aside["detail"] == "40 events per minute, more than sessionize.bots.max_events_per_minute 30"
    in_sessions = sum(row["num_events"] + row["num_collapsed"] for row in rows) + aside["num_events"]
    assert in_sessions == cleaned.warehouse.read(EVENTS).count() == 51


def test_what_was_set_aside_and_collapsed_is_told(cleaned: Run) -> None:
    account = cleaned.accounts["sessionize"]
    assert account.rows_out == {"sessions": 4, "repeats collapsed": 1}
    assert "set aside, too fast: 1 sessions of 1 users with 40 events" in account.remarks
    measured = cleaned.warehouse.read(DATA_QUALITY).where("stage = 'sessionize'").collect()
    assert {(row["name"], row["subject"], row["value"]) for row in measured} >= {
        ("events_lost_in_sessions", "sessions", 0.0),
        ("sessions_set_aside", "too_fast", 1.0),
        ("events_collapsed", "sessions", 1.0),
    }


def test_histories_are_clipped_and_filled_and_no_evaluated_row_looks_ahead(cleaned: Run) -> None:
    rows = cleaned.warehouse.read(SEQUENCES).orderBy("user_id", F.size("tokens")).collect()
    assert [(row["user_id"], row["split"], row["values"]) for row in rows] == [
        ("u", "train", [1, 2, 3]),
        ("u", "validation", [1, 2, 3, 3, 6]),
        # A line from 6 to 2 would have to know the last event's value.
        ("u", "test", [1, 2, 3, 3, 6, 6, 2]),
        ("v", "train", [2, 4, 5]),
    ]


def test_the_fitted_bounds_are_recorded_and_kept_with_the_sequences(cleaned: Run) -> None:
    measured = cleaned.warehouse.read(DATA_QUALITY).where("stage = 'sequences'").collect()
    assert {(row["name"], row["subject"], row["value"]) for row in measured} >= {
        ("value_lower_bound", "view", 0.0),
        ("value_upper_bound", "view", 6.0),
        ("values_outside_bounds", "view", 0.0),
        ("values_missing", "value", 3.0),
    }
    origin = cleaned.warehouse.origin(SEQUENCES)
    assert origin is not None
    kept = ValueTreatment.of_json(json.loads(json.dumps(origin["values"])))
    assert kept == ValueTreatment("interpolate", {"view": Bounds(0.0, 6.0)})
    assert kept.fill.rule == "interpolate"


@pytest.mark.parametrize("stage", ["sessionize", "sequences"])
def test_a_second_run_has_nothing_to_do(cleaned: Run, stage: str) -> None:
    assert run_stage(stage, cleaned.warehouse, cleaned.config()).nothing_to_do


@pytest.fixture
def copied(cleaned: Run, tmp_path: Path) -> Warehouse:
    shutil.copytree(cleaned.warehouse.root, tmp_path / "warehouse")
    return Warehouse(cleaned.warehouse.spark, str(tmp_path / "warehouse"))


def test_sessions_come_back_when_the_limit_is_taken_away(cleaned: Run, copied: Warehouse) -> None:
    run_stage("sessionize", copied, cleaned.config("sessionize.bots.max_events_per_minute=0"))
    assert copied.read(SESSIONS_SET_ASIDE).count() == 0
    assert copied.read(SESSIONS).where("user_id = 'bot'").count() == 1


@pytest.mark.slow
def test_limits_that_leave_no_session_are_refused_and_leave_the_tables_as_they_were(
    cleaned: Run, copied: Warehouse
) -> None:
    with pytest.raises(DataError, match=r"all 51 events .* sessionize\.bots"):
        run_stage("sessionize", copied, cleaned.config("sessionize.bots.max_events=1"))
    for table in (SESSIONS, SESSIONS_SET_ASIDE):
        assert sorted(copied.read(table).collect()) == sorted(cleaned.warehouse.read(table).collect())


def test_a_pattern_that_is_none_is_refused_before_anything_is_read(cleaned: Run) -> None:
    config = cleaned.config("ingest.normalise_item.replace=[['(', '']]", "ingest.paths=[/nowhere]")
    with pytest.raises(UsageError, match="normalise_item"):
        run_stage("ingest", cleaned.warehouse, config)


@pytest.mark.slow
def test_a_model_scores_under_the_bounds_that_it_was_trained_with(cleaned: Run) -> None:
    small = [
        "model.hidden_size=4",
        "model.embedding_size=4",
        "train.num_epochs=1",
        "train.device=cpu",
        "gate.enabled=false",
    ]
    run_stage("train", cleaned.warehouse, cleaned.config(*small))
    model = champion(cleaned.warehouse)
    assert model.values == ValueTreatment("interpolate", {"view": Bounds(0.0, 6.0)})
    assert re.match(r"\d", str(load_artifact(model.path).tables["splits"]["train_until"]))
    run_stage("score", cleaned.warehouse, cleaned.config("sequences.clip_values.method=none", "score.k=2"))
    sources = cleaned.warehouse.read(PREDICTIONS).where("user_id IS NOT NULL").select("user_id", "source").distinct()
    assert {tuple(row) for row in sources.collect()} == {("u", "model"), ("v", "model"), ("bot", "fallback")}
