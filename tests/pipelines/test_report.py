"""The stage report on small tables written by hand: what it reads of them, its bounds, and what it says where it cannot work."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import UsageError, UserError
from llm_spark.pipelines import report_rows
from llm_spark.pipelines.report import night_of
from llm_spark.pipelines.stages import run_stage
from llm_spark.report import Estimate, Reason
from llm_spark.schemas import DATA_QUALITY, EVALUATION, MODELS, PREDICTIONS, RUNS, TRAINING_METRICS, Table
from llm_spark.tables.warehouse import Warehouse
from tests.report.pages import parsed, section

SCRIPT = "<script>alert(1)</script>"
NIGHT = datetime(2026, 11, 25, 22)
NUM_STEPS, NUM_USERS = 1_000, 9


def config(warehouse: Warehouse, *overrides: str) -> Config:
    return settings.load(None, [f"warehouse={warehouse.root}", *overrides])


def write(warehouse: Warehouse, table: Table, rows: list[dict[str, Any]], origin: dict[str, Any] | None = None) -> None:
    values = [tuple(row.get(name) for name in table.schema.names) for row in rows]
    frame = warehouse.spark.createDataFrame(values, table.schema).coalesce(1)
    # As `Warehouse.replace` leaves them, in one commit instead of two.
    frame.write.format("delta").option("userMetadata", json.dumps(origin or {})).save(warehouse.path(table))


def run(stage: str, run_id: str, hours: float, **account: Any) -> dict[str, Any]:
    told = {
        "run_id": run_id,
        "stage": stage,
        "started_at": NIGHT + timedelta(hours=hours),
        "seconds": 60.0,
        "outcome": "done",
    }
    return told | {"account": json.dumps({"rows_in": {}, "rows_out": {}, "rejected": {}, "remarks": []} | account)}


def check(run_id: str, stage: str, name: str, hours: float, severity: str = "info", **further: Any) -> dict[str, Any]:
    told = {
        "run_id": run_id,
        "stage": stage,
        "name": name,
        "subject": "all",
        "value": 1.0,
        "severity": severity,
        "detail": "said",
    }
    return told | {"measured_at": NIGHT + timedelta(hours=hours)} | further


def figure(model_id: str, recommender: str, name: str, value: float, **further: Any) -> dict[str, Any]:
    told = {"model_id": model_id, "recommender": recommender, "slice": "all", "name": name, "value": value}
    return told | {"ci_low": value - 0.1, "ci_high": value + 0.1, "num_examples": 50, "sequences_version": 3} | further


def prediction(user: int, rank: int, day: date, **further: Any) -> dict[str, Any]:
    told = {"as_of_date": day, "user_id": f"u{user}", "rank": rank, "item_id": f"i{rank}", "score": 1.0}
    return told | {"probability": 0.5 / rank, "model_id": "m2", "run_id": "s1", "scored_at": NIGHT} | further


@pytest.fixture(scope="module")
def night(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Model m2 was evaluated beside champion m1; the newest run of sequences refused to go on; one user has reasons."""
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("night")))
    runs = [
        run("ingest", "old", -24, rows_out={"events": 1}),
        run("ingest", "i1", 0, rows_out={"events": 70}, rejected={"bad_time": 3}, remarks=[f"a file named {SCRIPT}"]),
        run("sequences", "q1", -24),
        run("report", "r1", 9),
        run("models", "a1", 3) | {"account": "no JSON"},
    ]
    write(warehouse, RUNS, runs)
    checks = [
        check("old", "ingest", "of_an_older_run", -24, "error"),
        check("i1", "ingest", "faults", 0, "warning", value=0.07, limit=0.05),
        check("q2", "sequences", "no_session_in_two_splits", 1, "error", value=2.0, limit=0.0),
        check("d1", "drift", "item_mix", 2, value=0.02, limit=0.04, subject="2026-11-25"),
        check("d0", "drift", "item_mix", -22, value=0.03, limit=0.04, subject="2026-11-24"),
    ]
    write(warehouse, DATA_QUALITY, checks)
    measured = [
        {"model_id": model_id, "step": step, "name": "train_loss", "value": float(step), "at": NIGHT}
        for model_id in ("m1", "m2")
        for step in range(1, NUM_STEPS + 1)
    ]
    write(warehouse, TRAINING_METRICS, measured)
    figures = [
        figure("m1", "model", "recall@20", 0.9, sequences_version=2),
        figure("m2", "model", "recall@20", 0.5),
        figure("m2", "champion", "recall@20", 0.4),
        figure("m2", "model", "recall@20", 0.1, against="champion"),
        figure("m2", "model", "recall@20", 0.6, slice="history_new"),
        figure("m2", "model", "novelty@20", 6.0, slice="history_new"),
        figure("m2", "model", "accuracy", 0.2, slice="confidence_3"),
        figure("m2", "model", "buys.lift", 3.0, slice="outcome_decile_1"),
        figure("m2", "model", "mrr@20", float("nan")),
    ]
    write(warehouse, EVALUATION, figures, {"models": {"model": "m2", "champion": "m1"}})
    models = [
        {
            "model_id": model_id,
            "created_at": NIGHT + timedelta(hours=number),
            "alias": alias,
            "reason": f"why {model_id}",
        }
        for number, (model_id, alias) in enumerate(
            [("m0", "archived"), ("m1", "archived"), ("m2", "champion"), ("m3", "archived")]
        )
    ]
    write(
        warehouse,
        MODELS,
        [{"config": "{}", "table_versions": "{}", "metrics": "{}", "moves": []} | model for model in models],
    )
    day, before = date(2026, 11, 25), date(2026, 11, 24)
    predictions = [prediction(user, rank, day) for user in range(NUM_USERS) for rank in range(1, 8)]
    predictions += [prediction(user, 1, before) for user in range(50, 60)]
    predictions += [prediction(99, 1, day, item_id=SCRIPT, reasons=[(SCRIPT, 0.8)], memory_weight=0.2)]
    write(warehouse, PREDICTIONS, predictions)
    return warehouse


def test_of_each_stage_the_newest_run_counts_and_one_that_refused_did_not_finish(night: Warehouse) -> None:
    runs = {run.stage: run for run in report_rows.newest_runs(night)}
    assert list(runs) == ["ingest", "sequences", "drift", "models"], (
        "in the order of the stages, without the report's own"
    )
    assert (runs["ingest"].run_id, runs["ingest"].rows_out, runs["ingest"].rejected) == (
        "i1",
        {"events": 70},
        {"bad_time": 3},
    )
    assert (runs["sequences"].run_id, runs["sequences"].seconds) == ("q2", None)
    assert (runs["models"].seconds, runs["models"].rows_in) == (60.0, {})


def test_checks_are_those_of_these_runs_and_the_gravest_come_first(
    night: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [run.run_id for run in report_rows.newest_runs(night)]
    checks, num_left_out = report_rows.checks_of(night, ids)
    assert [check.name for check in checks] == ["no_session_in_two_splits", "faults", "item_mix"]
    assert (checks[1].value, checks[1].limit, num_left_out) == (0.07, 0.05, 0)
    monkeypatch.setattr(report_rows, "MAX_CHECKS", 2)
    checks, num_left_out = report_rows.checks_of(night, ids)
    assert ([check.severity for check in checks], num_left_out) == (["error", "warning"], 1)


def test_the_figures_are_those_of_the_model_that_was_evaluated_last(night: Warehouse) -> None:
    assert report_rows.evaluated_ids(night) == ("m2", "m1")
    estimates = report_rows.estimates_of(night, "m2", "recall@20")
    assert Estimate("model", "champion", "all", "recall@20", 0.1, 0.0, 0.2, 50) in estimates
    assert {(e.recommender, e.slice, e.name) for e in estimates} == {
        ("model", "all", "recall@20"),
        ("champion", "all", "recall@20"),
        ("model", "history_new", "recall@20"),
        ("model", "confidence_3", "accuracy"),
        ("model", "outcome_decile_1", "buys.lift"),
    }, "no figure that is no number, and of slices the deciding metric alone"


def test_a_long_curve_is_drawn_in_a_bounded_number_of_means(night: Warehouse) -> None:
    points = report_rows.measurements_of(night, "m2")
    assert 0 < len(points) <= report_rows.POINTS_OF_A_CURVE
    assert all(point.value == pytest.approx(point.step, abs=0.5) for point in points), "the value was the step"
    assert points[0].step <= 3
    assert points[-1].step >= NUM_STEPS - 3
    assert report_rows.measurements_of(night, "nobody") == []


def test_the_champion_stands_first_in_the_registry_then_the_newest(
    night: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, num_models = report_rows.registered_models(night)
    assert ([model.model_id for model in models], num_models) == (["m2", "m3", "m1", "m0"], 4)
    assert (models[0].reason, models[0].has_artifact) == ("why m2", False)
    monkeypatch.setattr(report_rows, "MAX_MODELS", 2)
    models, num_models = report_rows.registered_models(night)
    assert ([model.model_id for model in models], num_models) == (["m2", "m3"], 4)


def test_users_are_of_the_newest_day_and_those_with_reasons_come_first(night: Warehouse) -> None:
    users = report_rows.example_users(night, 4)
    assert users == report_rows.example_users(night, 4), "the same table shows the same users"
    assert users[0].user_id == "u99"
    assert users[0].predictions[0].reasons == [Reason(SCRIPT, 0.8)]
    assert {user.as_of for user in users} == {date(2026, 11, 25)}
    assert [[each.rank for each in user.predictions] for user in users[1:]] == [[1, 2, 3, 4, 5]] * 3
    assert len(report_rows.example_users(night, 100)) == NUM_USERS + 1
    assert report_rows.example_users(night, 0) == []


def test_the_stage_writes_the_page_once_and_the_same_tables_are_nothing_to_do(night: Warehouse, tmp_path: Path) -> None:
    account = run_stage("report", night, config(night))
    # The newest run of the night, of `llm-spark models`, began an hour after midnight.
    file = Path(night.root) / "reports" / "report-2026-11-26.html"
    assert account.remarks == [f"page '{file}'"]
    assert account.rows_out == {"pages": 1, "users_shown": 5}
    content = file.read_bytes()
    page = parsed(content.decode())
    assert not list(page.all("script"))
    assert SCRIPT in section(page, "users").text
    assert f"a file named {SCRIPT}" in section(page, "night").text
    assert "0.500 [0.400, 0.600]" in section(page, "metrics").text
    assert "m3" in section(page, "registry").text
    again = run_stage("report", night, config(night))
    assert again.nothing_to_do == f"'{file}' tells of these tables already"
    elsewhere = tmp_path / "mail" / "page.html"
    run_stage("report", night, config(night), output=str(elsewhere))
    assert elsewhere.read_bytes() == content
    run_stage("report", night, config(night, "report.num_users=0"))
    assert "u99" not in file.read_text()


def test_a_page_that_cannot_be_written_is_one_clear_line(night: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "page.html"):
        with pytest.raises(
            UserError, match=rf"the report cannot be written to '{place}': .*; give another file with --output"
        ):
            run_stage("report", night, config(night), output=str(place))


def test_an_empty_warehouse_is_one_clear_line(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "nothing"))
    with pytest.raises(
        UserError, match=r"nothing has run in the warehouse '.*nothing' yet: run `llm-spark ingest` first"
    ):
        run_stage("report", warehouse, config(warehouse))


def test_tables_of_an_earlier_version_lack_columns_and_others_are_missing(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(spark, str(tmp_path))
    old = spark.createDataFrame([figure("m7", "model", "recall@20", 0.5)]).drop("against")
    old.coalesce(1).write.format("delta").save(warehouse.path(EVALUATION))
    night = night_of(warehouse, config(warehouse))
    assert (night.model_id, night.champion_id, night.date) == ("m7", None, None)
    assert [(e.name, e.against) for e in night.estimates] == [("recall@20", None)]
    assert (night.runs, night.checks, night.users, night.models) == ([], [], [], [])


def test_a_page_is_read_by_people_so_the_number_of_users_has_a_bound() -> None:
    with pytest.raises(UsageError, match=r"report\.num_users is 101: give 0 to 100"):
        settings.load(None, ["report.num_users=101"])
