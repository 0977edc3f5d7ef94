"""Commits that change no row (compaction, table properties) leave every stage nothing to do."""

from __future__ import annotations

import shutil

from pyspark.sql import SparkSession

from llm_spark.pipelines import STAGES
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, EVENT_TYPES, EVENTS, PREDICTIONS, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain


def test_every_stage_has_nothing_to_do_after_commits_that_changed_no_row(
    chain: Chain, copied: Warehouse, spark: SparkSession
) -> None:
    inputs = (EVENTS, SESSIONS, VOCABULARY, EVENT_TYPES, SEQUENCES, EVALUATION, PREDICTIONS)
    before = {table: copied.version(table) for table in inputs}
    for table in inputs:
        spark.sql(f"ALTER TABLE delta.`{copied.path(table)}` SET TBLPROPERTIES ('a' = 'b')")
    spark.sql(f"OPTIMIZE delta.`{copied.path(SEQUENCES)}`")
    assert all(copied.version(table) > version for table, version in before.items())
    for stage in STAGES:
        assert run_stage(stage, copied, chain.config).nothing_to_do, stage


def test_sessions_that_were_made_anew_are_seen_though_their_version_is_the_same(
    chain: Chain, copied: Warehouse
) -> None:
    before = copied.log(SESSIONS)
    shutil.rmtree(copied.path(SESSIONS))
    run_stage("sessionize", copied, chain.with_settings("sessionize.gap_seconds=60"))
    after = copied.log(SESSIONS)
    assert (after.version, after.table_id != before.table_id) == (before.version, True)
    assert not run_stage("sequences", copied, chain.with_settings("sessionize.gap_seconds=60")).nothing_to_do
