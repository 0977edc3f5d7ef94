"""The whole chain as of an earlier day, beside a warehouse in which nothing later ever happened."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from tests.integration.session_logs import arrive, random_log
from tests.killing import table_rows

NIGHT = datetime(2025, 3, 28)
"""In the midst of the log, and of sessions: its users begin around the 28th of January, February, March and April."""


def config(warehouse: Warehouse, *overrides: str) -> Config:
    columns = [f"ingest.columns.{name}={name}" for name in ("user", "item", "time")]
    outcomes = "model.outcomes=[{name: soon, event_types: [view], within_days: 0.001, kind: probability}]"
    given = [f"warehouse={warehouse.root}", "ingest.paths=[unused]", "ingest.format=csv", *columns, outcomes]
    small = ["sessionize.gap_seconds=60", "sessionize.num_buckets=2", "sequences.min_item_count=1"]
    return settings.load(None, [*given, *small, *overrides], ("ingest",))


def test_sequences_as_of_a_day_are_those_of_a_log_that_ends_with_it(spark: SparkSession, tmp_path: Path) -> None:
    log = random_log(seed=3, num_users=14, num_nights=1)
    known_then = [event for event in log if event.at < NIGHT]
    assert 0 < len(known_then) < len(log)
    found = {}
    for name, events, as_of in (("ended", known_then, []), ("later", log, ["as_of=2025-03-27"])):
        warehouse = Warehouse(spark, str(tmp_path / name))
        arrive(warehouse, events)
        for stage in ("sessionize", "sequences"):
            run_stage(stage, warehouse, config(warehouse, *as_of))
        found[name] = table_rows(warehouse, SEQUENCES, VOCABULARY, EVENT_TYPES)
        if name == "ended":
            again = run_stage("sequences", warehouse, config(warehouse, "as_of=2025-03-27"))
            assert again.nothing_to_do, "a day on or after the newest event leaves nothing out"
            assert run_stage("sequences", warehouse, config(warehouse, "as_of=2025-06-01")).nothing_to_do
    assert found["later"] == found["ended"]
    cut = f"started_at < '{NIGHT}' AND ended_at >= '{NIGHT}'"
    assert warehouse.read(SESSIONS).where(cut).count() > 0, "the sessions themselves are whole"
