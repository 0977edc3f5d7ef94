"""Maintenance of a whole warehouse: what a model was trained on stays, and no stage takes anything for changed."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.pipelines import STAGES
from llm_spark.pipelines import maintain as maintain_stage
from llm_spark.pipelines.query import print_tables
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import (
    EVALUATION,
    EVENT_TYPES,
    EVENTS,
    MODELS,
    PREDICTIONS,
    RUNS,
    SEQUENCES,
    SESSIONS,
    TABLES,
    VOCABULARY,
)
from llm_spark.tables.maintenance import data_files, files_of_version
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain

NOW = "maintain.retention_hours=0"


@pytest.fixture
def copied(chain: Chain, spark: SparkSession, tmp_path: Path) -> Warehouse:
    """The chain's warehouse, and sequences that were made, another way, since the model was trained."""
    shutil.copytree(chain.warehouse.root, tmp_path / "copy")
    warehouse = Warehouse(spark, str(tmp_path / "copy"))
    for setting in ("sequences.max_tokens=80", "sequences.max_tokens=90"):
        run_stage("sequences", warehouse, chain.with_settings(setting))
    return warehouse


def rows(warehouse: Warehouse) -> dict[str, int]:
    return {table.name: warehouse.read(table).count() for table in TABLES.values() if warehouse.exists(table)}


def names(warehouse: Warehouse) -> set[str]:
    return {file.name for file in data_files(warehouse.spark, warehouse.path(SEQUENCES))}


def test_a_pinned_version_outlives_maintenance_until_it_is_forced_and_no_stage_runs_again(
    chain: Chain, copied: Warehouse, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    spark, path = copied.spark, copied.path(SEQUENCES)
    (model,) = copied.read(MODELS).collect()
    pinned = json.loads(model["table_versions"])["sequences"]
    files_of_pinned = files_of_version(spark, path, pinned)
    unpinned = files_of_version(spark, path, pinned + 1)
    content = sorted(map(str, copied.read(SEQUENCES, pinned).collect()))
    before = rows(copied)

    assert not run_stage("maintain", copied, chain.with_settings()).rows_out["old_files_removed"], "all is young"
    account = run_stage("maintain", copied, chain.with_settings(NOW))
    assert account.rows_out["old_files_removed"] >= len(unpinned)
    assert not unpinned & names(copied)
    assert files_of_pinned <= names(copied)
    assert sorted(map(str, copied.read(SEQUENCES, pinned).collect())) == content
    after = rows(copied)
    assert {name: after[name] for name in before if name != RUNS.name} == {
        name: before[name] for name in before if name != RUNS.name
    }
    last = chain.with_settings("sequences.max_tokens=90")
    for stage in ("sessionize", "sequences"):
        assert run_stage(stage, copied, last).nothing_to_do
    assert run_stage("maintain", copied, chain.with_settings("maintain.retention_hours=1")).nothing_to_do

    print_tables(copied)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip("│ ").startswith("sequences ")]
    readable = line.split("│")[-2].replace(" ", "").split(",")
    assert str(pinned) in readable or any(part.endswith(f"-{pinned}") for part in readable)

    logging.getLogger("llm_spark").propagate = True
    with caplog.at_level("WARNING"):
        run_stage("maintain", copied, chain.with_settings(NOW), force=True)
    assert f"removed by --force: sequences v{pinned}, which {model['model_id']} was trained on" in caplog.text
    assert not files_of_pinned & names(copied)
    assert copied.read(SEQUENCES).count() == before["sequences"]


def test_maintenance_that_was_killed_between_its_steps_is_run_again_as_if_it_had_not_been(
    chain: Chain, copied: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(copied)

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(maintain_stage, "remove_old_files", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("maintain", copied, chain.with_settings(NOW))
    # A removal that came half-way: one of the files that it may remove is gone.
    needed = files_of_version(copied.spark, copied.path(SEQUENCES))
    model = copied.read(MODELS).first()
    assert model is not None
    needed |= files_of_version(copied.spark, copied.path(SEQUENCES), json.loads(model["table_versions"])["sequences"])
    old = [file for file in Path(copied.path(SEQUENCES)).rglob("*.parquet") if file.name not in needed]
    old[0].unlink()
    run_stage("maintain", copied, chain.with_settings(NOW))
    assert names(copied) >= needed
    after = rows(copied)
    assert {name: after[name] for name in before if name != RUNS.name} == {
        name: before[name] for name in before if name != RUNS.name
    }


def test_every_stage_has_nothing_to_do_after_commits_that_changed_no_row(
    chain: Chain, spark: SparkSession, tmp_path: Path
) -> None:
    shutil.copytree(chain.warehouse.root, tmp_path / "copy")
    warehouse = Warehouse(spark, str(tmp_path / "copy"))
    inputs = (EVENTS, SESSIONS, VOCABULARY, EVENT_TYPES, SEQUENCES, EVALUATION, PREDICTIONS)
    before = {table: warehouse.version(table) for table in inputs}
    for table in inputs:
        spark.sql(f"ALTER TABLE delta.`{warehouse.path(table)}` SET TBLPROPERTIES ('a' = 'b')")
    spark.sql(f"OPTIMIZE delta.`{warehouse.path(SEQUENCES)}`")
    assert all(warehouse.version(table) > version for table, version in before.items())
    for stage in STAGES:
        assert run_stage(stage, warehouse, chain.config).nothing_to_do, stage
