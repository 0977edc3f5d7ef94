"""The whole chain on simulated logs whose truth is known to the line."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.errors import DataError
from llm_spark.pipelines import STAGES
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import (
    EVALUATION,
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    MODELS,
    PREDICTIONS,
    REJECTION_REASONS,
    RUNS,
    SEQUENCES,
    SESSIONS,
    TABLES,
    TRAINING_METRICS,
    VOCABULARY,
)
from llm_spark.simulation import Process, write_logs
from llm_spark.tables.warehouse import Warehouse, sql
from tests.integration.conftest import SIMULATION, SMALL_MODEL, Chain, simulated_config
from tests.report.pages import parsed, section


def test_ingest_finds_exactly_the_events_that_were_simulated(chain: Chain) -> None:
    process = Process.draw(SIMULATION)
    clean = process.simulate()
    users, items = process.user_ids, process.item_ids
    expected = sorted(
        (users[user], items[item], int(time))
        for user, item, time in zip(clean.user_N, clean.item_N, clean.time_N, strict=True)
    )
    rows = (
        chain.warehouse.read(EVENTS).select("user_id", "item_id", F.unix_seconds("event_time").alias("time")).collect()
    )
    assert sorted((row["user_id"], row["item_id"], row["time"]) for row in rows) == expected


def test_every_planted_trouble_is_rejected_with_its_reason_or_counted_as_a_duplicate(chain: Chain) -> None:
    rejected = {
        row["reason"]: row["count"] for row in chain.warehouse.read(EVENTS_REJECTED).groupBy("reason").count().collect()
    }
    planted = chain.logs.num_planted
    assert set(rejected) <= set(REJECTION_REASONS)
    assert rejected == {
        reason: number
        for reason, number in {
            "unparsable": planted["broken"],
            "filtered": planted["bot"],
            **{name: planted[name] for name in ("missing_user", "missing_item", "missing_time", "bad_time")},
        }.items()
        if number
    }
    ledger = chain.warehouse.read(INGESTED_FILES).agg(
        *[F.sum(name).alias(name) for name in ("num_records", "num_accepted", "num_rejected", "num_duplicates")]
    )
    (counts,) = ledger.collect()
    assert counts["num_duplicates"] == planted["duplicates"]
    assert (
        counts["num_records"]
        == chain.logs.num_lines
        == counts["num_accepted"] + counts["num_rejected"] + counts["num_duplicates"]
    )


def test_sessions_are_those_that_were_simulated(chain: Chain) -> None:
    assert chain.warehouse.read(SESSIONS).count() == chain.logs.num_sessions


def test_no_training_row_holds_an_event_as_late_as_an_evaluated_one(chain: Chain) -> None:
    rows = chain.warehouse.read(SEQUENCES)
    targets = F.slice("event_times", F.col("first_target") + 1, F.size("event_times"))
    latest_trained = rows.where("split = 'train'").agg(F.max(F.array_max("event_times"))).first()[0]
    earliest = rows.where("split <> 'train'").groupBy("split").agg(F.min(F.array_min(targets)).alias("at")).collect()
    at = {row["split"]: row["at"] for row in earliest}
    assert latest_trained < at["validation"] < at["test"]


def test_the_model_beats_popularity_on_the_test_split(chain: Chain) -> None:
    rows = chain.warehouse.read(EVALUATION).where("slice = 'all' AND name = 'recall@10' AND against IS NULL").collect()
    recall = {row["recommender"]: row["value"] for row in rows}
    assert recall["model"] > recall["popularity"]
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows)


def test_metrics_of_the_training_run_name_the_model_and_fall_in_loss(chain: Chain) -> None:
    (model,) = chain.warehouse.read(MODELS).collect()
    rows = chain.warehouse.read(TRAINING_METRICS).orderBy("step").collect()
    assert {row["model_id"] for row in rows} == {model["model_id"]}
    losses = [row["value"] for row in rows if row["name"] == "epoch_loss"]
    assert losses[-1] < losses[0]
    assert any(row["name"] == "validation_recall_at_20" for row in rows)
    assert json.loads(model["table_versions"])["sequences"] == chain.warehouse.version(SEQUENCES)


def test_every_user_gets_k_distinct_known_items_in_order_of_probability(chain: Chain) -> None:
    current = sql(
        chain.warehouse, "SELECT * FROM predictions_current WHERE user_id IS NOT NULL ORDER BY user_id, rank"
    ).collect()
    by_user: dict[str, list] = {}
    for row in current:
        by_user.setdefault(row["user_id"], []).append(row)
    users = {row[0] for row in chain.warehouse.read(SESSIONS).select("user_id").distinct().collect()}
    items = {row[0] for row in chain.warehouse.read(VOCABULARY).select("item_id").collect()}
    assert set(by_user) == users
    for rows in by_user.values():
        assert [row["rank"] for row in rows] == list(range(1, chain.config.score.k + 1))
        assert len({row["item_id"] for row in rows}) == chain.config.score.k
        assert {row["item_id"] for row in rows} <= items
        chances = [row["probability"] for row in rows]
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1 + 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_run_of_a_stage_has_nothing_to_do_and_changes_no_table(chain: Chain, stage: str) -> None:
    def versions() -> dict[str, int]:
        return {
            table.name: chain.warehouse.version(table) for table in TABLES.values() if chain.warehouse.exists(table)
        }

    before = versions()
    assert chain.run(stage)
    assert versions() == before


def test_scoring_an_earlier_day_uses_only_what_was_known_then(chain: Chain, copied: Warehouse) -> None:
    run_stage("score", copied, chain.with_settings("as_of=2025-01-09"))
    rows = copied.read(PREDICTIONS).where(F.col("as_of_date") == F.lit(date(2025, 1, 9)))
    known_then = copied.read(EVENTS).where("event_time < '2025-01-10'").select("user_id").distinct()
    assert (
        rows.where("user_id IS NOT NULL").select("user_id").distinct().count()
        == known_then.count()
        < chain.logs.num_users
    )
    newest = sql(copied, "SELECT count(DISTINCT user_id), min(as_of_date) FROM predictions_current").first()
    assert newest is not None
    assert newest[0] == chain.logs.num_users
    assert newest[1] > date(2025, 1, 9), "the view keeps each user's newest day"


def test_the_newest_trained_model_scores_and_an_earlier_one_returns_when_it_is_asked_for_again(
    chain: Chain, copied: Warehouse
) -> None:
    (first,) = copied.read(MODELS).collect()
    other = chain.with_settings("train.seed=9", "train.num_epochs=1")
    run_stage("train", copied, other)
    aliases = {row["model_id"]: row["alias"] for row in copied.read(MODELS).collect()}
    assert aliases.pop(first["model_id"]) == "archived"
    assert list(aliases.values()) == ["champion"]
    run_stage("train", copied, chain.config)
    aliases = {row["model_id"]: row["alias"] for row in copied.read(MODELS).collect()}
    assert aliases[first["model_id"]] == "champion"
    assert sorted(aliases.values()) == ["archived", "champion"]


def test_a_model_is_not_tested_on_events_it_has_seen(chain: Chain, copied: Warehouse) -> None:
    earlier = ["sequences.train_until=2025-01-08", "sequences.validation_until=2025-01-09"]
    run_stage("sequences", copied, chain.with_settings(*earlier))
    with pytest.raises(DataError, match="run `llm-spark train`"):
        run_stage("evaluate", copied, chain.with_settings(*earlier))


def test_the_page_of_the_chain_shows_what_the_tables_hold(chain: Chain) -> None:
    (file,) = (Path(chain.warehouse.root) / "reports").glob("report-*.html")
    page = parsed(file.read_text())
    stages = [next(row.all("th")).text for row in section(page, "night").all("tr") if list(row.all("td"))]
    assert stages == [stage for stage in STAGES if stage != "report"]
    events = chain.warehouse.read(EVENTS).count()
    assert f"{events:,} events" in section(page, "night").text
    recall = (
        chain.warehouse.read(EVALUATION).where("slice = 'all' AND name = 'recall@20' AND against IS NULL").collect()
    )
    told = next(
        picture for picture in section(page, "metrics").all("svg") if next(picture.all("title")).text == "recall@20"
    )
    parts = told.attributes["aria-label"].split("intervals: ")[1].split("; ")
    for row in recall:
        name = "this model" if row["recommender"] == "model" else row["recommender"].replace("_", " ")
        (value,) = (found[1] for part in parts if (found := re.match(rf"{name} ([\d.]+)", part)))
        assert float(value) == pytest.approx(row["value"], abs=5e-4)
    (model,) = chain.warehouse.read(MODELS).collect()
    assert model["model_id"] in section(page, "registry").text
    users = {row["user_id"] for row in chain.warehouse.read(PREDICTIONS).select("user_id").distinct().collect()}
    shown = [user.text for user in section(page, "users").all("h3")]
    assert len(shown) == chain.config.report.num_users
    assert set(shown) <= users
    for name in ("training", "slices", "drift"):
        assert list(section(page, name).all("svg")), name


def test_each_run_left_its_account(chain: Chain) -> None:
    stages = [row["stage"] for row in chain.warehouse.read(RUNS).orderBy("started_at").limit(len(STAGES)).collect()]
    assert stages == list(STAGES)


def _events(frame: DataFrame) -> set[tuple]:
    return {
        tuple(row)
        for row in frame.select("event_id", "user_id", "item_id", "event_time", "event_type", "value").collect()
    }


def test_csv_files_in_two_rounds_give_the_events_of_json_lines_in_one(
    chain: Chain, spark: SparkSession, tmp_path: Path
) -> None:
    write_logs(SIMULATION, tmp_path / "logs", "csv")
    files = sorted(path for path in (tmp_path / "logs").iterdir() if not path.name.startswith("_"))
    held_back = [(path, tmp_path / path.name) for path in files[::2]]
    for path, aside in held_back:
        path.rename(aside)
    from llm_spark import config as settings

    config = settings.load(simulated_config(tmp_path, tmp_path / "logs", "csv"), SMALL_MODEL, ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    first = run_stage("ingest", warehouse, config)
    assert first.rows_in["files"] == len(files) - len(held_back)
    for path, aside in held_back:
        aside.rename(path)
    second = run_stage("ingest", warehouse, config)
    assert second.rows_in["files"] == len(held_back)
    assert _events(warehouse.read(EVENTS)) == _events(chain.warehouse.read(EVENTS))
    reasons = {row["reason"] for row in warehouse.read(EVENTS_REJECTED).select("reason").distinct().collect()}
    assert {"unparsable", "filtered", "missing_user"} <= reasons
