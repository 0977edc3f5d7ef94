"""Commits that change no row (compaction, table properties) leave every stage nothing to do."""

from __future__ import annotations

import shutil
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark.pipelines import STAGES
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, EVENT_TYPES, EVENTS, PREDICTIONS, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain


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
