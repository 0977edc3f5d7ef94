"""The whole night on a Spark standalone cluster that loses a worker in sessionize, in training and in scoring."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, PREDICTIONS
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import SMALL_MODEL, Chain
from tests.integration.same_tables import assert_same_tables
from tests.integration.standalone_cluster import POLL_SECONDS, Driver, StandaloneCluster, Worker
from tests.integration.training_victim import untrained_copy

NIGHT = ["jobs/nightly.py"]
"""The program, and what it is given before --config."""

CHECKPOINT_AFTER_EVERY_STEP = "train.checkpoint_seconds=0"


def lose_the_worker_that(
    is_at_work: Callable[[Worker], bool], in_stage: str, cluster: StandaloneCluster, driver: Driver
) -> None:
    """Kill the first worker of which `is_at_work` holds while the driver is `in_stage`."""
    while True:
        assert driver.is_alive(), f"ended before a worker was lost in {in_stage}: {driver.printed()[-3000:]}"
        _, has_begun, printed_since = driver.printed().partition(f" {in_stage} ...")
        if has_begun:
            has_ended = re.search(rf" {in_stage}: .* in, .* out, [\d.]+ s\n", printed_since)
            assert not has_ended, f"no worker was lost in {in_stage}: {printed_since[-3000:]}"
            victim = next((worker for worker in cluster.workers if worker.is_alive() and is_at_work(worker)), None)
            if victim is not None:
                victim.freeze()
                if is_at_work(victim):
                    victim.lose()
                    return
                victim.thaw()
        time.sleep(POLL_SECONDS)


def runs_kernel(driver: Driver, worker: Worker) -> bool:
    """A kernel of sessionize or score."""
    return worker.is_running(driver.stages_with("MapInArrow"))


def is_amid_training(warehouse: Path, worker: Worker) -> bool:
    """It runs a rank, of which there is a checkpoint and no record of its end."""
    has_checkpoint = any(warehouse.glob("staging/train-*/checkpoints/step-*/manifest.json"))
    for file in warehouse.glob("staging/train-*/run-*/*.started.json"):
        # The folder is removed when all is over.
        with contextlib.suppress(FileNotFoundError):
            started = json.loads(file.read_text())
            has_ended = file.with_name(f"rank-{started['rank']}.ended.json").exists()
            if has_checkpoint and not has_ended and worker.runs(started["pid"]):
                return True
    return False


def take_the_night_there(cluster: StandaloneCluster, chain: Chain, warehouse: Path, num_ranks: int) -> None:
    """The night, and once more after training has failed; each lost worker is replaced, that of several ranks not before the rerun."""
    night = [*NIGHT, "--config", str(chain.config_file), f"warehouse={warehouse}", *SMALL_MODEL]
    night += [CHECKPOINT_AFTER_EVERY_STEP, f"train.num_ranks={num_ranks}"]
    driver = cluster.submit(*night)
    lose_the_worker_that(functools.partial(runs_kernel, driver), "sessionize", cluster, driver)
    cluster.add_worker()
    lose_the_worker_that(functools.partial(is_amid_training, warehouse), "train", cluster, driver)
    if num_ranks == 1:
        cluster.add_worker()
    assert driver.wait() == 1
    assert "training failed: rank" in driver.printed()
    assert "ended without a completion record" in driver.printed()
    if num_ranks > 1:
        cluster.add_worker()
    driver = cluster.submit(*night)
    lose_the_worker_that(functools.partial(runs_kernel, driver), "score", cluster, driver)
    assert driver.wait() == 0, driver.printed()[-3000:]
    assert "gone on from step" in driver.printed()


def test_a_night_on_a_cluster_that_loses_a_worker_in_each_long_stage_gives_the_tables_of_an_undisturbed_local_one(
    chain: Chain, spark: SparkSession, tmp_path: Path
) -> None:
    with StandaloneCluster(tmp_path) as cluster:
        take_the_night_there(cluster, chain, tmp_path / "warehouse", num_ranks=1)
    assert_same_tables(Warehouse(spark, str(tmp_path / "warehouse")), chain.warehouse)


@pytest.mark.slow
def test_two_ranks_of_which_one_is_lost_with_its_machine_fail_at_once_and_go_on_from_their_checkpoint(
    chain: Chain, spark: SparkSession, tmp_path: Path
) -> None:
    with StandaloneCluster(tmp_path) as cluster:
        take_the_night_there(cluster, chain, tmp_path / "warehouse", num_ranks=2)
    untrained_copy(Path(chain.warehouse.root), tmp_path / "undisturbed")
    undisturbed = Warehouse(spark, str(tmp_path / "undisturbed"))
    for table in (EVALUATION, PREDICTIONS):
        shutil.rmtree(undisturbed.path(table))
    for stage in ("train", "evaluate", "score"):
        run_stage(stage, undisturbed, chain.with_settings("train.num_ranks=2"))
    assert_same_tables(Warehouse(spark, str(tmp_path / "warehouse")), undisturbed)
