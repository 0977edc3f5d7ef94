"""Nights of simulated logs through `llm-spark nightly`: what each step did, what a failure leaves, what a further run finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import DataError, UsageError, UserError
from llm_spark.pipelines import clock, stages
from llm_spark.pipelines.dry_run import plan
from llm_spark.pipelines.night import LOCK, run_by_hand
from llm_spark.pipelines.nightly import nightly
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import DATA_QUALITY, MODELS, PREDICTIONS, RUNS, TABLES
from llm_spark.tables.current import PREDICTIONS_CURRENT
from llm_spark.tables.lease import held
from llm_spark.tables.warehouse import Warehouse, sql
from tests.integration.conftest import Chain
from tests.integration.nights import SETTINGS, Logs, last_outcome


@dataclass(frozen=True)
class Place:
    """A warehouse whose logs arrive day by day."""

    logs: Logs
    warehouse: Warehouse

    def config(self, *overrides: str) -> Config:
        given = [f"warehouse={self.warehouse.root}", *SETTINGS, *overrides]
        return settings.load(self.logs.settings_file, given, ("ingest",))

    def versions(self) -> dict[str, int]:
        return {t.name: self.warehouse.version(t) for t in TABLES.values() if self.warehouse.exists(t)}

    def newest_day_served(self) -> date:
        row = sql(self.warehouse, f"SELECT max(as_of_date) FROM {PREDICTIONS_CURRENT}").first()
        assert row is not None
        return row[0]

    def stages_of(self, as_of: str) -> list[str]:
        """The steps that were done for a day, in the order in which they began."""
        rows = self.warehouse.read(RUNS).where((F.col("as_of_date") == as_of) & (F.col("outcome") == "done"))
        return [row["stage"] for row in rows.where("stage <> 'nightly'").orderBy("started_at").collect()]


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("nights")
    return Place(Logs(folder), Warehouse(spark, str(folder / "warehouse")))


@pytest.fixture(scope="module")
def first_night(place: Place) -> Place:
    """The night of the 11th, with two files; nothing was there before."""
    place.logs.arrive("2025-01-11")
    before = dict(plan(place.warehouse, place.config()))
    assert before["ingest"].startswith("would read 6 new or changed files, the first 'file:")
    assert before["training"] == "as_configured: there is no champion yet"
    assert not Path(place.warehouse.root).exists(), "a dry run writes nothing"
    nightly(place.warehouse, place.config())
    return place


def failing(stage: str, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    real: Callable = stages.stage_of

    def broken(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(stages, "stage_of", lambda name: broken if name == stage else real(name))


def test_the_first_night_trains_and_leaves_the_predictions_of_its_day_and_a_page(first_night: Place) -> None:
    assert first_night.newest_day_served() == date(2025, 1, 11)
    assert first_night.stages_of("2025-01-11") == ["drift", "sequences", "train", "evaluate", "score", "report"]
    row = first_night.warehouse.read(RUNS).where("stage = 'nightly'").first()
    steps = ["ingest", "sessionize", *first_night.stages_of("2025-01-11")]
    assert json.loads(row["account"])["remarks"] == [f"{step}: done" for step in steps]
    nights = {row["night_id"] for row in first_night.warehouse.read(RUNS).collect()}
    assert nights == {row["run_id"]}
    assert Path(first_night.warehouse.root, "reports", "report-2025-01-11.html").is_file()


def test_a_finished_night_has_nothing_to_do(first_night: Place, caplog: pytest.LogCaptureFixture) -> None:
    before = first_night.versions()
    planned = dict(plan(first_night.warehouse, first_night.config()))
    assert all(what.startswith("nothing to do") for step, what in planned.items() if step != "training"), planned
    nightly(first_night.warehouse, first_night.config("as_of=2025-01-11"))
    assert first_night.versions() == before


@pytest.fixture(scope="module")
def second_night(first_night: Place) -> Place:
    """The night of the 12th fails in score, and is run again."""
    first_night.logs.arrive("2025-01-12")
    with pytest.MonkeyPatch.context() as patch:
        failing("score", patch, MemoryError("no memory left"))
        with pytest.raises(MemoryError, match="no memory left"):
            nightly(first_night.warehouse, first_night.config())
    assert first_night.newest_day_served() == date(2025, 1, 11), "yesterday's are served"
    assert last_outcome(first_night.warehouse, "score") == ("failed", "MemoryError: no memory left")
    assert last_outcome(first_night.warehouse, "nightly") == ("failed", "MemoryError: no memory left")
    stopped = first_night.versions()
    nightly(first_night.warehouse, first_night.config())
    kept = ("events", "sessions", "vocabulary", "sequences", "models", "evaluation", "training_metrics")
    assert {name: first_night.versions()[name] for name in kept} == {name: stopped[name] for name in kept}
    return first_night


def test_a_night_that_failed_goes_on_where_it_stopped(second_night: Place) -> None:
    assert second_night.newest_day_served() == date(2025, 1, 12)
    assert last_outcome(second_night.warehouse, "nightly") == ("done", None)
    ids = {row["model_id"] for row in second_night.warehouse.read(MODELS).collect()}
    assert len(ids) == 2, "each night trained one"


def test_neither_a_failed_training_nor_a_refused_model_stops_the_night_and_both_are_told(second_night: Place) -> None:
    place, champion = second_night, read_models(second_night.warehouse).champion
    place.logs.arrive("2025-01-13")
    # No model of these few users is that much better than what is popular.
    strict = place.config("gate.beats_popularity=interval", "train.num_epochs=0.1", "gate.max_loss=0")
    with pytest.MonkeyPatch.context() as patch:
        failing("train", patch, UserError("training failed: rank 0 ended without a completion record"))
        with pytest.raises(UserError, match=r"^training failed: rank 0 ended"):
            nightly(place.warehouse, strict)
    assert last_outcome(place.warehouse, "nightly")[0] == "failed"
    trained = place.warehouse.read(DATA_QUALITY).where("name = 'trained'").collect()
    assert sorted(row["subject"] for row in trained) == ["2025-01-11", "2025-01-12"], "a decision is no training"
    assert place.stages_of("2025-01-13") == ["drift", "sequences", "score", "report"], "the champion scores"
    assert place.newest_day_served() == date(2025, 1, 13)
    with pytest.raises(DataError, match=f"was refused: .*; champion {champion.model_id} scores; "):
        nightly(place.warehouse, strict)
    assert place.newest_day_served() == date(2025, 1, 13)
    newest = place.warehouse.read(PREDICTIONS).where("as_of_date = DATE'2025-01-13'")
    assert {row["model_id"] for row in newest.select("model_id").distinct().collect()} == {champion.model_id}
    assert Path(place.warehouse.root, "reports", "report-2025-01-13.html").is_file()
    assert last_outcome(place.warehouse, "evaluate")[0] == "refused"
    assert last_outcome(place.warehouse, "nightly")[0] == "refused"
    before = place.versions()
    with pytest.raises(DataError, match="was refused"):
        nightly(place.warehouse, strict)
    assert place.versions() == before


def test_a_night_whose_only_model_is_refused_scores_nothing_and_says_so(
    chain: Chain, chain_until: Callable[[str], Warehouse]
) -> None:
    warehouse = chain_until("sequences")
    strict = chain.with_settings("gate.enabled=true", "gate.beats_popularity=interval", "train.num_epochs=0.02")
    told = r"^model \w+ was refused: .*; no model is champion; `llm-spark models promote \w+` overrules the gate$"
    with pytest.raises(DataError, match=told):
        nightly(warehouse, strict)
    steps = [row["stage"] for row in warehouse.read(RUNS).where("night_id > ''").orderBy("started_at").collect()]
    assert [step for step in steps if step in ("drift", "train", "evaluate", "score", "report")] == [
        "drift",
        "train",
        "evaluate",
        "report",
    ]
    assert last_outcome(warehouse, "nightly")[0] == "refused"
    assert not warehouse.exists(PREDICTIONS)
    planned = dict(plan(warehouse, strict))
    assert "; no model is champion; " in planned["score"]
    assert all(what.startswith("nothing to do") for step, what in planned.items() if step != "training"), planned
    with pytest.raises(DataError, match=told):
        nightly(warehouse, strict)
    assert not warehouse.exists(PREDICTIONS)


def test_an_earlier_night_is_scored_by_a_champion_that_knows_more_and_trains_none(second_night: Place) -> None:
    ids = {row["model_id"] for row in second_night.warehouse.read(MODELS).collect()}
    config = second_night.config("as_of=2025-01-09")
    nightly(second_night.warehouse, config)
    assert {row["model_id"] for row in second_night.warehouse.read(MODELS).collect()} == ids
    assert second_night.stages_of("2025-01-09") == ["drift", "score", "report"]
    (row,) = (
        second_night.warehouse.read(DATA_QUALITY)
        .where("subject = '2025-01-09' AND name = 'training_decision'")
        .collect()
    )
    assert "later than this night: it knows what came after" in row["detail"]


def test_a_night_beside_another_ends_at_once_and_names_it(first_night: Place) -> None:
    with held(first_night.warehouse, LOCK, "the night of 2025-01-11, run abc"):
        named = r"held by the night of 2025-01-11, run abc, process \d+ on .* since "
        with pytest.raises(UserError, match=named):
            nightly(first_night.warehouse, first_night.config())
        with pytest.raises(UserError, match=named):
            run_by_hand("drift", first_night.warehouse, first_night.config())


def test_an_as_of_still_to_come_is_refused(first_night: Place) -> None:
    tomorrow = date.today() + timedelta(days=2)
    with pytest.raises(UsageError, match=f"as_of is {tomorrow}, which is still to come"):
        nightly(first_night.warehouse, first_night.config(f"as_of={tomorrow}"))


def test_a_run_after_the_clock_was_moved_back_is_still_the_newest(
    first_night: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(first_night.warehouse.spark, first_night.warehouse.root)
    newest = warehouse.read(RUNS).agg(F.max("started_at")).first()[0]

    class YearsAgo(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(clock, "datetime", YearsAgo)
    config = replace(first_night.config(), as_of="2025-01-10")
    account = run_stage("drift", warehouse, config)
    assert newest < account.started_at < newest + timedelta(hours=1)
    assert "2025-01-10" in run_stage("drift", warehouse, config).nothing_to_do, "it finds its own verdict as the newest"
