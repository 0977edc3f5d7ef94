"""The whole chain as of an earlier day, beside a warehouse in which nothing later ever happened."""

from __future__ import annotations

import gzip
import re
from datetime import datetime
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.pipelines.nightly import nightly
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import (
    EVENT_TYPES,
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    SEQUENCES,
    SESSIONS,
    SESSIONS_SET_ASIDE,
    VOCABULARY,
)
from llm_spark.tables.warehouse import Warehouse
from tests.integration.nights import SETTINGS as NIGHT_SETTINGS
from tests.integration.nights import Logs, rows_of
from tests.integration.session_logs import arrive, random_log
from tests.killing import table_rows

NIGHT = datetime(2025, 3, 28)
"""In the midst of the log, and of sessions: its users begin around the 28th of January, February, March and April."""


_TIME = re.compile(r'(?<=^{"time":")[^"]*')


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


@pytest.mark.slow
def test_a_whole_night_as_of_a_day_leaves_what_one_of_a_log_that_ends_with_it_leaves(
    spark: SparkSession, tmp_path: Path
) -> None:
    found = {}
    for name in ("ended", "later"):
        logs = Logs(tmp_path / name)
        logs.arrive("2025-01-13")
        if name == "ended":
            for file in logs.folder.iterdir():
                _end_with(file, "2025-01-12")
        warehouse = Warehouse(spark, str(tmp_path / name / "warehouse"))
        overrides = [f"warehouse={warehouse.root}", *NIGHT_SETTINGS, "as_of=2025-01-11"]
        nightly(warehouse, settings.load(logs.settings_file, overrides, ("ingest",)))
        found[name] = rows_of(warehouse)
        assert (warehouse.read(EVENTS).where("event_time >= '2025-01-12'").count() > 0) == (name == "later")
    of_all_days = {table.name for table in (EVENTS, EVENTS_REJECTED, INGESTED_FILES, SESSIONS, SESSIONS_SET_ASIDE)}
    assert {"predictions", "user_memory", "evaluation", "models", "sequences"} <= found["ended"].keys() - of_all_days
    for table in found["ended"].keys() - of_all_days:
        assert found["later"][table] == found["ended"][table], table


def _end_with(file: Path, day: str) -> None:
    """Leave out the raw lines of events of this day or after; of a broken line nobody knows."""
    lines = (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8").readlines()
    with (gzip.open if file.suffix == ".gz" else open)(file, "wt", encoding="utf-8") as kept:
        kept.writelines(line for line in lines if not day <= (_TIME.search(line) or [""])[0] < "2026")
