"""What spark-submit shows of a stage that fails, and of a Spark without Delta. Whole nights on a cluster: test_standalone_cluster.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

from llm_spark.spark import delta_jars

ROOT = Path(__file__).parents[2]
SUBMIT = Path(pyspark.__file__).parent / "bin" / "spark-submit"


def submit(program: str, *arguments: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(SUBMIT), *options, program, *arguments]
    environment = dict(os.environ, PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def printed(done: subprocess.CompletedProcess[str]) -> str:
    """All that was printed: spark-submit lays a Python program's stderr into its own stdout."""
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    # As conf/spark-submit.conf, with the JARs at hand in place of resolving the package at each start.
    given = (ROOT / "conf" / "spark-submit.conf").read_text().splitlines()
    kept = [line for line in given if line and not line.startswith(("#", "spark.jars.packages"))]
    file = tmp_path_factory.mktemp("submit") / "spark.conf"
    file.write_text("\n".join(kept) + "\n")
    jars = ",".join(delta_jars())
    # A JVM that lives for a minute does not earn what the second compiler costs.
    java = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
    small = {
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": java,
        "spark.executor.extraJavaOptions": java,
    }
    options = [word for name, value in small.items() for word in ("--conf", f"{name}={value}")]
    return ["--master", "local-cluster[2,1,1024]", "--properties-file", str(file), "--jars", jars, *options]


def test_a_failed_stage_gives_its_exit_code_through_spark_submit(cluster_options: list[str], tmp_path: Path) -> None:
    done = submit("jobs/train.py", f"warehouse={tmp_path}", options=["--master", "local[1]", *cluster_options[2:]])
    assert done.returncode == 1
    assert "run `llm-spark sequences` first" in printed(done)


def test_a_spark_without_delta_is_told_how_to_get_it(tmp_path: Path) -> None:
    done = submit(
        "jobs/train.py", f"warehouse={tmp_path}", options=["--master", "local[1]", "--conf", "spark.ui.enabled=false"]
    )
    assert done.returncode == 1
    assert "conf/spark-submit.conf" in printed(done)
