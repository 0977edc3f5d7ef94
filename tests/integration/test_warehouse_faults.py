"""A warehouse that cannot be written, is full, lacks a table or holds one of another layout: one clear line, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrameWriter, SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.pipelines.night import run_by_hand
from llm_spark.pipelines.nightly import nightly
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, INGESTED_FILES, RUNS, SESSIONS, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain
from tests.integration.session_logs import arrive, found_sessions, random_log

LOG = random_log(seed=1, num_users=8, num_nights=1)


def config(warehouse: Warehouse, *overrides: str) -> Config:
    columns = [f"ingest.columns.{name}={name}" for name in ("user", "item", "time")]
    given = [f"warehouse={warehouse.root}", "ingest.paths=[unused]", "ingest.format=csv", "sessionize.num_buckets=2"]
    return settings.load(None, [*given, *columns, *overrides], ("ingest",))


def overwrite(writer: DataFrameWriter, path: str) -> None:
    """With other columns than the table had."""
    writer.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)


def remove(warehouse: Warehouse, table: Table) -> None:
    """The folder, and what Delta remembers of it in this process: the next run will be another one."""
    shutil.rmtree(warehouse.path(table))
    jvm: Any = warehouse.spark._jvm
    jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_told_and_the_stage_runs_once_there_is_room(spark: SparkSession, disk: Path) -> None:
    warehouse = Warehouse(spark, str(disk / "warehouse"))
    arrive(warehouse, LOG)
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(UserError, match=f"'{warehouse.root}': the disk is full: make room"):
        run_stage("sessionize", warehouse, config(warehouse))
    filler.unlink()
    run_stage("sessionize", warehouse, config(warehouse))
    assert sum(row[5] for row in found_sessions(warehouse.read(SESSIONS))) == len(LOG)


def test_a_disk_that_fills_up_in_a_rewrite_leaves_the_table_as_it_was(spark: SparkSession, disk: Path) -> None:
    warehouse = Warehouse(spark, str(disk / "warehouse"))
    arrive(warehouse, LOG)
    run_stage("sessionize", warehouse, config(warehouse))
    before = found_sessions(warehouse.read(SESSIONS))
    free = shutil.disk_usage(disk).free
    filler = disk / "filler"
    filler.write_bytes(bytes(free - 8192))
    with pytest.raises(UserError, match="the disk is full: make room, there or in Spark's scratch folder"):
        run_stage("sessionize", warehouse, config(warehouse, "sessionize.gap_seconds=60"))
    assert found_sessions(warehouse.read(SESSIONS)) == before
    filler.unlink()


def test_a_read_only_warehouse_is_told_by_a_stage_and_by_a_night(spark: SparkSession, disk: Path) -> None:
    warehouse = Warehouse(spark, str(disk / "warehouse"))
    arrive(warehouse, LOG)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    told = f"'{warehouse.root}.*(is the warehouse writable|cannot be written)"
    for run in (
        lambda: run_stage("sessionize", warehouse, config(warehouse)),
        lambda: run_by_hand("sessionize", warehouse, config(warehouse)),
        lambda: nightly(warehouse, config(warehouse)),
    ):
        with pytest.raises(UserError, match=told):
            run()
    assert warehouse.read(EVENTS).count() == len(LOG)


def test_removed_events_are_not_taken_for_a_finished_ingest(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    logs = tmp_path / "days.csv"
    logs.write_text("user,item,time\n" + "".join(f"u{n % 3},i{n},2025-01-01T10:{n:02}:00Z\n" for n in range(30)))
    given = config(warehouse, f"ingest.paths=[{logs}]")
    run_stage("ingest", warehouse, given)
    remove(warehouse, EVENTS)
    with pytest.raises(
        UserError, match=r"table 'events' is gone from .* and its ledger lists 1 files: restore the table; or remove"
    ):
        run_stage("ingest", warehouse, given)
    remove(warehouse, INGESTED_FILES)
    run_stage("ingest", warehouse, given)
    assert warehouse.read(EVENTS).count() == 30


def test_a_removed_vocabulary_is_made_anew_by_the_stage_that_writes_it(
    chain_until: Callable[[str], Warehouse], chain: Chain
) -> None:
    warehouse = chain_until("sequences")
    remove(warehouse, VOCABULARY)
    account = run_stage("sequences", warehouse, chain.config)
    assert not account.nothing_to_do
    assert warehouse.read(VOCABULARY).count() == chain.warehouse.read(VOCABULARY).count()


def test_a_table_of_another_layout_is_refused_and_one_of_an_earlier_version_goes_on(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    arrive(warehouse, LOG)
    run_stage("sessionize", warehouse, config(warehouse))
    # Runs of an earlier version know nothing of nights.
    earlier = warehouse.read(RUNS).drop("reason", "night_id", "as_of_date").localCheckpoint()
    overwrite(earlier.write, warehouse.path(RUNS))
    assert warehouse.read(RUNS).where(F.col("night_id").isNull()).count() == 1
    run_stage("sessionize", warehouse, config(warehouse, "sessionize.gap_seconds=60", "as_of=2025-03-01"))
    assert [
        row[0] for row in warehouse.read(RUNS).select(F.col("as_of_date").isNotNull()).orderBy("started_at").collect()
    ] == [False, True]
    renamed = warehouse.read(EVENTS).withColumnRenamed("user_id", "customer").localCheckpoint()
    overwrite(renamed.write.partitionBy("event_date"), warehouse.path(EVENTS))
    refused = "table 'events' in .* lacks the columns user_id and has customer, which nothing here knows"
    with pytest.raises(UserError, match=refused):
        run_stage("sessionize", warehouse, config(warehouse))
    with pytest.raises(UserError, match=refused):
        run_stage("drift", warehouse, config(warehouse))
