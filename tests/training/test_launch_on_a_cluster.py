"""The launch on a cluster of processes: ranks are the tasks of a barrier stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER_SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pyspark.sql import SparkSession
from llm_spark.errors import UserError
from llm_spark.training.launch import run_ranks, train
from tests.training.sequences import cyclic_rows, small_job

builder = SparkSession.builder.master("local-cluster[2,1,512]").config("spark.executor.memory", "512m")
for key, value in {{"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}}.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
folder = Path({folder!r})
job = small_job(folder, cyclic_rows(64, 10, 1), cyclic_rows(16, 10, 2), num_ranks=2, num_epochs=4.0, learning_rate=0.02)
print("RECALL", train(spark, job).best_recall)

def kill_rank_1(argument, ranks, on_step):
    if ranks.rank == 1:
        os.kill(os.getpid(), 9)
    return {{}}

try:
    run_ranks(spark, kill_rank_1, None, num_ranks=2, work_dir=str(folder), device="cpu", timeout_seconds=60)
except UserError as error:
    print("ERROR", error)
spark.stop()
"""


@pytest.mark.slow
def test_ranks_are_barrier_tasks_on_a_cluster(tmp_path: Path) -> None:
    script = tmp_path / "on_a_cluster.py"
    root = str(Path(__file__).resolve().parents[2])
    script.write_text(CLUSTER_SCRIPT.format(root=root, folder=str(tmp_path)))
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=400,
        check=False,
    )
    printed = [line for line in ran.stdout.splitlines() if line.startswith(("RECALL", "ERROR"))]
    assert printed[0] == "RECALL 1.0", ran.stderr
    assert "training failed: rank 1 ended without a completion record" in printed[1]
