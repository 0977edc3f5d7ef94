"""The stage drift on Delta tables: its verdicts are those of the same weeks counted in numpy, and it repeats nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.config import Config, DriftConfig, IngestConfig
from llm_spark.config.ingest import ColumnsConfig
from llm_spark.errors import DataError, UsageError, UserError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.drift import latest_advice
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import DATA_QUALITY, EVENTS, PREDICTIONS, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.drift_findings import findings
from llm_spark.transforms.drift_kernel import Calendar
from tests.benchmarks.simulated_weeks import NUM_WEEKS, SOURCES, TYPES, Weeks, changed, scene_of, simulated_weeks

SETTINGS = DriftConfig(num_references=5, new_item_days=7)
NUM_DAYS = 7 * SETTINGS.num_references + 1 + SETTINGS.new_item_days
"""As many as the oldest window's new items need."""


def last_days(weeks: Weeks) -> Weeks:
    return weeks.kept(weeks.day_N >= 7 * NUM_WEEKS - NUM_DAYS)


@pytest.fixture(scope="module")
def shifted() -> Weeks:
    """Few enough items that none is counted in a group; on the last day four views in ten are purchases."""
    weeks = last_days(simulated_weeks(8, is_seasonal=True, num_users=700, num_items=120, sessions=60))
    for turn in range(5):
        weeks = changed(weeks, "event types changed", calendar(weeks), seed=8 + turn)
    return weeks


def calendar(weeks: Weeks) -> Calendar:
    return Calendar(last_day(weeks), SETTINGS.window_days, SETTINGS.num_references)


def last_day(weeks: Weeks) -> date:
    return weeks.start + timedelta(days=7 * NUM_WEEKS - 1)


def write_events(warehouse: Warehouse, weeks: Weeks) -> None:
    midnight = np.datetime64(weeks.start) + weeks.day_N
    value = pd.Series(weeks.value_N, dtype=object).where(~np.isnan(weeks.value_N), None)
    named = pd.DataFrame(
        {
            "event_id": [f"e{number}" for number in range(len(weeks.day_N))],
            "user_id": [f"user-{user:06d}" for user in weeks.user_N],
            "item_id": [weeks.item_id(int(item)) for item in weeks.item_N],
            "event_type": np.array(TYPES)[weeks.type_N],
            "event_time": midnight.astype("datetime64[s]") + weeks.second_N,
            "value": value.astype(object),
            "lacks_agent": weeks.lacks_agent_N,
            "event_date": midnight.astype("datetime64[s]"),
            "source_file": [SOURCES[source].replace("#", "7") for source in weeks.source_N],
        }
    )
    frame = warehouse.spark.createDataFrame(named)
    rows = frame.withColumns(
        {
            "attributes": F.when(F.col("lacks_agent"), F.create_map()).otherwise(
                F.create_map(F.lit("agent"), F.lit("web"))
            ),
            "session_key": F.lit(None),
            "ingested_at": F.lit(datetime(2025, 6, 1)),
            "run_id": F.lit("run"),
        }
    )
    warehouse.replace(EVENTS, rows.coalesce(1), {})


def write_sessions(warehouse: Warehouse, weeks: Weeks) -> None:
    first_N = np.flatnonzero(np.diff(weeks.session_N, prepend=-1))
    began = np.datetime64(weeks.start).astype("datetime64[s]") + weeks.day_N[first_N] * 86_400 + weeks.second_N[first_N]
    named = pd.DataFrame({"started_at": began, "num_events": np.diff(np.append(first_N, len(weeks.session_N)))})
    rows = warehouse.spark.createDataFrame(named).withColumns(
        {
            "started_month": F.trunc("started_at", "month"),
            "num_collapsed": F.lit(0),
            "user_bucket": F.lit(0),
            **{name: F.lit(None) for name in SESSIONS.schema.names if name not in _SESSION_COLUMNS},
        }
    )
    warehouse.replace(SESSIONS, rows.coalesce(1), {})


_SESSION_COLUMNS = ("started_at", "started_month", "num_events", "num_collapsed", "user_bucket")


def write_vocabulary(warehouse: Warehouse, weeks: Weeks) -> None:
    """Of the items before the last day."""
    known = sorted({weeks.item_id(int(item)) for item in weeks.item_N[weeks.day_N < 7 * NUM_WEEKS - 1]})
    rows = [(2 + token, item_id, 1, datetime(2025, 1, 1)) for token, item_id in enumerate(known)]
    warehouse.replace(VOCABULARY, warehouse.spark.createDataFrame(rows, VOCABULARY.schema).coalesce(1), {})


def config(warehouse: Warehouse, settings: DriftConfig = SETTINGS) -> Config:
    columns = ColumnsConfig("user", "item", "time", attributes={"agent": "agent"})
    return Config(warehouse=warehouse.root, ingest=IngestConfig([], "jsonl", columns), drift=settings)


@pytest.fixture(scope="module")
def judged(spark: SparkSession, shifted: Weeks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Warehouse, Account]:
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("drift")))
    write_events(warehouse, shifted)
    write_sessions(warehouse, shifted)
    write_vocabulary(warehouse, shifted)
    return warehouse, run_stage("drift", warehouse, config(warehouse))


def test_spark_finds_what_numpy_finds_to_the_last_digit(judged: tuple[Warehouse, Account], shifted: Weeks) -> None:
    warehouse, _ = judged
    without = dict.fromkeys(("score_distribution", "hit_rate"), "there are no predictions yet: run `llm-spark score`")
    expected = findings(replace(scene_of(shifted, calendar(shifted), SETTINGS), absent=without))
    assert {finding.name: finding.severity for finding in expected if finding.severity != "info"} == {
        "event_types": "error"
    }
    assert {finding.measure for finding in expected if finding.value is None} == set(without)
    rows = warehouse.read(DATA_QUALITY).where("stage = 'drift'").collect()
    measured = {row["name"]: row for row in rows}
    for finding in expected:
        if finding.value is not None:
            row = measured[finding.name]
            assert (row["value"], row["limit"]) == pytest.approx((finding.value, finding.limit), rel=1e-9), finding.name
            assert (row["severity"], row["detail"]) == (finding.severity, finding.text)
            assert row["subject"] == str(last_day(shifted))


def test_the_account_tells_what_is_unusual_first_and_ends_with_advice(
    judged: tuple[Warehouse, Account], shifted: Weeks
) -> None:
    warehouse, account = judged
    first, second, *_, not_judged, advice = account.remarks
    assert first == "2025-05-04 (Sunday) against 5 earlier Sundays, from 2025-03-30 on; at most drift.num_references 5"
    assert second.startswith("ERROR: mix of event types: PSI 0.")
    assert not_judged == (
        "not judged: there are no predictions yet: run `llm-spark score` (certainty of predictions, hit rate of predictions)"
    )
    assert advice == "advice: retrain. Train from scratch: mix of event types (error)."
    told = latest_advice(warehouse)
    assert told is not None
    assert (told.action, told.reason, told.is_withheld) == (
        "retrain",
        "Train from scratch: mix of event types (error).",
        False,
    )
    assert account.rows_out["errors"] == 1


def test_no_row_is_of_a_single_user(judged: tuple[Warehouse, Account]) -> None:
    warehouse, account = judged
    rows = warehouse.read(DATA_QUALITY).where("stage = 'drift'").collect()
    assert not any("user-" in str(value) for row in rows for value in row)
    assert not any("user-" in line for line in account.remarks)


def test_a_rerun_on_the_same_tables_has_nothing_to_do_and_still_refuses_errors_where_asked(
    judged: tuple[Warehouse, Account],
) -> None:
    warehouse, _ = judged
    version = warehouse.version(DATA_QUALITY)
    again = run_stage("drift", warehouse, config(warehouse))
    assert again.nothing_to_do == "2025-05-04 was judged on these tables with these settings already"
    with pytest.raises(DataError, match=r"errors on 2025-05-04 \(event_types\): see data_quality"):
        run_stage("drift", warehouse, config(warehouse, replace(SETTINGS, fail_on_error=True)))
    assert warehouse.version(DATA_QUALITY) == version


def test_predictions_that_come_true_are_measured_before_they_can_be_judged(
    judged: tuple[Warehouse, Account], shifted: Weeks, spark: SparkSession
) -> None:
    warehouse, _ = judged
    as_of = last_day(shifted) - timedelta(days=SETTINGS.hit_days)
    followed = warehouse.read(EVENTS).where(F.col("event_date") > F.lit(as_of)).groupBy("user_id")
    first_items = followed.agg(F.min_by("item_id", F.struct("event_time", "event_id")).alias("item_id"))
    lists = first_items.withColumns(
        {"as_of_date": F.lit(as_of), "rank": F.lit(1), "probability": F.lit(0.3)}
        | {
            name: F.lit(None)
            for name in PREDICTIONS.schema.names
            if name not in ("as_of_date", "user_id", "rank", "item_id", "probability")
        }
    )
    warehouse.replace(PREDICTIONS, lists.coalesce(1), {})
    account = run_stage("drift", warehouse, config(warehouse))
    assert not account.nothing_to_do, "the predictions are new"
    (line,) = [line for line in account.remarks if line.startswith("hit rate")]
    # Those who came on the day itself: of others only a night that scored everybody has lists.
    visitors = warehouse.read(EVENTS).where(F.col("event_date") == F.lit(as_of)).select("user_id").distinct()
    num = first_items.join(visitors, "user_id", "left_semi").count()
    assert num < first_items.count()
    assert line.startswith("hit rate of predictions: 100.0 % [")
    assert (
        f"of {num:,} users: their next event was among the first 10 predicted as of {as_of}; not judged: 0 windows of 4"
        in line
    )
    assert any(
        line == f"not judged: no users with predictions as of {last_day(shifted)} (certainty of predictions)"
        for line in account.remarks
    )


def test_what_cannot_be_judged_is_one_clear_line(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(spark, str(tmp_path))
    with pytest.raises(UserError, match=r"table 'events' is not in the warehouse .*: run `llm-spark ingest` first"):
        run_stage("drift", warehouse, config(warehouse))
    warehouse.create(EVENTS)
    with pytest.raises(DataError, match="the events table is empty: run `llm-spark ingest` on logs that hold events"):
        run_stage("drift", warehouse, config(warehouse))
    row = (
        "e",
        "user-1",
        "a",
        "view",
        datetime(2025, 3, 2, 9),
        None,
        None,
        {},
        date(2025, 3, 2),
        "f",
        datetime(2025, 3, 2),
        "r",
    )
    warehouse.replace(EVENTS, spark.createDataFrame([row], EVENTS.schema), {})
    with pytest.raises(UsageError, match=r"as_of is 2025-01-01, before the first event \(2025-03-02\)"):
        run_stage("drift", warehouse, replace(config(warehouse), as_of="2025-01-01"))
    account = run_stage("drift", warehouse, config(warehouse))
    assert account.remarks[1:] == [
        "number of events: 1 event; not judged: 0 windows of 4",
        "not judged: 1 user on 2025-03-02, fewer than drift.min_users 30 (mix of items, events of new items, mix of event types, "
        "hours of the day, mix of raw files, form of item ids, form of user ids, missing agent)",
        "not judged: there is no vocabulary yet: run `llm-spark sequences` (events of unknown items)",
        "not judged: there are no sessions yet: run `llm-spark sessionize` (events a session)",
        "not judged: there are no predictions yet: run `llm-spark score` (certainty of predictions, hit rate of predictions)",
        "advice: none. Nothing could be judged, so that nothing speaks for training.",
    ]
    later = run_stage("drift", warehouse, replace(config(warehouse), as_of="2025-03-09"))
    assert "WARNING: number of events: 0 events; not judged: 1 windows of 4" in later.remarks
