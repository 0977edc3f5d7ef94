"""The whole night on a Spark standalone cluster that loses a worker in sessionize, in training and in scoring."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import SparkSession

from llm_spark.schemas import DATA_QUALITY, RUNS, TABLES, TRAINING_METRICS
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import SMALL_MODEL, Chain
from tests.integration.standalone_cluster import POLL_SECONDS, Driver, StandaloneCluster, Worker
from tests.integration.training_victim import are_equal, weights

NIGHT = ["tests/integration/submitted_night.py"]
"""The program, and its arguments before --config."""

OF_THE_RUN = {"run_id", "ingested_at", "scored_at", "created_at", "changed_at", "evaluated_at", "at", "moves"}
"""Columns that tell when and by which run a row was written."""


def lose_the_worker_that(
    is_at_work: Callable[[Worker], bool], in_stage: str, cluster: StandaloneCluster, driver: Driver
) -> None:
    """Kill the first worker of which `is_at_work` holds while the driver is `in_stage`, and bring a new one."""
    while True:
        assert driver.is_alive(), f"ended before a worker was lost in {in_stage}: {driver.printed()[-3000:]}"
        _, has_begun, printed_since = driver.printed().partition(f" {in_stage} ...")
        if has_begun:
            assert f" {in_stage}: " not in printed_since, f"no worker was lost in {in_stage}: {printed_since[-3000:]}"
            victim = next((worker for worker in cluster.workers if worker.is_alive() and is_at_work(worker)), None)
            if victim is not None:
                victim.lose()
                cluster.add_worker()
                return
        time.sleep(POLL_SECONDS)


def rows(warehouse: Warehouse) -> dict[str, list[str]]:
    """Of every table: its rows as text, in order, without what differs from run to run."""
    found = {}
    for table in TABLES.values():
        if table in (RUNS, DATA_QUALITY) or not warehouse.exists(table):
            continue
        rows = warehouse.read(table)
        if table is TRAINING_METRICS:
            rows = rows.where("name <> 'tokens_per_second'")
        found[table.name] = sorted(map(str, rows.drop(*OF_THE_RUN).collect()))
    return found


def test_a_night_on_a_cluster_that_loses_a_worker_in_each_long_stage_gives_the_tables_of_an_undisturbed_local_one(
    chain: Chain, spark: SparkSession, tmp_path: Path
) -> None:
    folder = tmp_path / "warehouse"
    night = [*NIGHT, "--config", str(chain.config_file), f"warehouse={folder}", *SMALL_MODEL]
    after_every_step = "train.checkpoint_seconds=0"

    def trains(worker: Worker) -> bool:
        """A rank is one of its processes, and has left two checkpoints."""
        num_whole = len(list(folder.glob("staging/train-*/checkpoints/step-*/manifest.json")))
        return num_whole >= 2 and worker.is_running(driver.stages_with("MapInArrow"))

    def runs_python(worker: Worker) -> bool:
        return worker.is_running(driver.stages_with("MapInArrow"))

    with StandaloneCluster(tmp_path) as cluster:
        driver = cluster.submit(*night, after_every_step)
        lose_the_worker_that(runs_python, "sessionize", cluster, driver)
        lose_the_worker_that(trains, "train", cluster, driver)
        assert driver.wait() == 1
        assert "training failed: rank 0 ended without a completion record" in driver.printed()
        driver = cluster.submit(*night, after_every_step)
        lose_the_worker_that(runs_python, "score", cluster, driver)
        assert driver.wait() == 0, driver.printed()[-3000:]
        assert "gone on from step" in driver.printed()
    assert are_equal(weights(folder), weights(Path(chain.warehouse.root)))
    ours, theirs = rows(Warehouse(spark, str(folder))), rows(chain.warehouse)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name
