"""Parquet, files that differ in their columns, odd file names, a file offered twice."""

from __future__ import annotations

import gzip
import shutil
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, INGESTED_FILES
from llm_spark.tables.warehouse import Warehouse
from tests.integration.ingesting import COLUMNS, Loaded


def ingest(spark: SparkSession, config: Config) -> Warehouse:
    warehouse = Warehouse(spark, config.warehouse)
    run_stage("ingest", warehouse, config)
    return warehouse


def events(warehouse: Warehouse) -> list[tuple]:
    rows = warehouse.read(EVENTS).select("user_id", "item_id", "event_time", "value").collect()
    return sorted(tuple(row) for row in rows)


def test_typed_parquet_columns_need_no_time_format(spark: SparkSession, loaded: Loaded, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "day=1"
    folder.mkdir(parents=True)
    times = pa.array([datetime(2025, 1, 1, 12), None], pa.timestamp("us"))
    table = pa.table({"user": [17850, 17851], "item": ["a", "b"], "time": times, "v": [1.5, 2.5]})
    pq.write_table(table, folder / "part.parquet")
    config = loaded(f"ingest.paths=[{tmp_path / 'logs'}]", "ingest.format=parquet", "ingest.columns.value=v", *COLUMNS)
    assert events(ingest(spark, config)) == [("17850", "a", datetime(2025, 1, 1, 12), 1.5)]


def test_csv_files_with_other_columns_or_another_order_are_read_by_their_own_header(
    spark: SparkSession, loaded: Loaded, tmp_path: Path
) -> None:
    logs = tmp_path / "logs with spaces é"
    logs.mkdir()
    (logs / "1 [a]{b}.csv").write_text("\nuser,item,time\nu,a,2025-01-01T00:00:00Z\n")
    (logs / "2 ü.csv").write_text('\ufeffitem,time,extra,user\n"b, c",2025-01-01T00:00:01Z,x,u\n')
    (logs / "3.csv.gz").write_bytes(gzip.compress(b"user,time\nu,2025-01-01T00:00:02Z\n"))
    hidden = logs / "_temporary" / "0"
    hidden.mkdir(parents=True)
    (hidden / "part.csv").write_text("user,item,time\nu,not-committed,2025-01-01T00:00:00Z\n")
    config = loaded(f"ingest.paths=['{logs}']", "ingest.format=csv", *COLUMNS)
    warehouse = ingest(spark, config)
    assert [(item, time.second) for _, item, time, _ in events(warehouse)] == [("a", 0), ("b, c", 1)]
    ledger = {
        row["source_file"].rsplit("/", 1)[1]: row["num_rejected"] for row in warehouse.read(INGESTED_FILES).collect()
    }
    assert sorted(ledger.values()) == [0, 0, 1], "the file without items is accounted for"


def test_a_file_offered_again_under_another_name_adds_no_event(
    spark: SparkSession, loaded: Loaded, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.jsonl").write_text('{"user": "u", "item": "i", "time": "2025-01-01T00:00:00Z"}\n' * 2)
    config = loaded(f"ingest.paths=[{logs}]", "ingest.format=jsonl", *COLUMNS)
    warehouse = ingest(spark, config)
    shutil.copy(logs / "a.jsonl", logs / "b.jsonl")
    account = run_stage("ingest", warehouse, config)
    assert warehouse.read(EVENTS).count() == 1
    assert (account.rows_in["records"], account.rows_out["duplicates"]) == (2, 2)


def test_a_file_that_grew_counts_its_old_lines_as_its_own(spark: SparkSession, loaded: Loaded, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    first, second = (f'{{"user": "u", "item": "{item}", "time": "2025-01-01T00:00:00Z"}}\n' for item in "ij")
    (logs / "b.jsonl").write_text(first)
    config = loaded(f"ingest.paths=[{logs}]", "ingest.format=jsonl", *COLUMNS)
    warehouse = ingest(spark, config)
    (logs / "b.jsonl").write_text(first + second)
    (logs / "a.jsonl").write_text(first)
    run_stage("ingest", warehouse, config)
    ledger = {
        row["source_file"][-7:]: (row["num_accepted"], row["num_duplicates"])
        for row in warehouse.read(INGESTED_FILES).collect()
    }
    assert ledger == {"a.jsonl": (0, 1), "b.jsonl": (2, 0)}


@pytest.mark.parametrize("before_the_ledger", ["write_ledger", "_write_events"])
def test_a_run_killed_before_its_ledger_is_made_good_by_the_next(
    spark: SparkSession, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_the_ledger: str
) -> None:
    from llm_spark.pipelines import ingest as stage

    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.jsonl").write_text('{"user": "u", "item": "i", "time": "2025-01-01T00:00:00Z"}\n{"user": "u"\n')
    config = loaded(f"ingest.paths=[{logs}]", "ingest.format=jsonl", *COLUMNS)
    warehouse = Warehouse(spark, config.warehouse)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, before_the_ledger, killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("ingest", warehouse, config)
    account = run_stage("ingest", warehouse, config)
    assert account.rows_out == {"events": 1, "duplicates": 0, "rejected": 1}
    assert warehouse.read(EVENTS).count() == 1
