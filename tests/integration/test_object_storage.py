"""The whole night with its warehouse on S3, a server of moto's on loopback. Opt-in, for the AWS SDK that Spark needs there has 690 MB:

pip install s3fs 'moto[server]'
python -c "from pyspark.sql import SparkSession as S; S.builder.config('spark.jars.packages', 'org.apache.hadoop:hadoop-aws:3.5.0').getOrCreate()"
python -m pytest -m slow tests/integration/test_object_storage.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.spark import delta_jars
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import SMALL_MODEL, Chain
from tests.integration.same_tables import assert_same_tables
from tests.integration.standalone_cluster import ROOT, SHORT_LIVED, SPARK
from tests.integration.test_standalone_cluster import CHECKPOINT_AFTER_EVERY_STEP, NIGHT

BUCKET = "night"
JARS = ("*hadoop-aws-3.5.0.jar", "*awssdk_bundle-*.jar", "*wildfly-openssl-*.jar", "*analyticsaccelerator-s3-*.jar")
"""Where Ivy keeps what --packages brought."""


@dataclass(frozen=True)
class Store:
    """A running server."""

    url: str
    environment: dict[str, str]
    jars: list[str]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    server_module = pytest.importorskip("moto.server", reason="no local S3 server: pip install 'moto[server]'")
    pytest.importorskip("s3fs", reason="Python does not reach S3: pip install s3fs")
    found = [jar for pattern in JARS for jar in Path.home().glob(f".ivy2*/jars/{pattern}")]
    if len(found) < len(JARS):
        pytest.skip("Spark does not reach S3: see this file's first lines for how to bring its JARs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    given = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    yield Store(url, given, list(map(str, found)))
    server.stop()


def settings_in_the_example(store: Store) -> dict[str, str]:
    """The lines for S3 that conf/spark-submit.conf has as comments, but for the package and DynamoDB, with the address of this server."""
    example = (ROOT / "conf" / "spark-submit.conf").read_text()
    lines = dict(re.findall(r"^# (spark\.hadoop\.fs\.s3a\.\S+) +(\S+)$", example, re.MULTILINE))
    assert {"spark.hadoop.fs.s3a.endpoint", "spark.hadoop.fs.s3a.path.style.access"} <= lines.keys()
    return lines | {"spark.hadoop.fs.s3a.endpoint": store.url, "spark.hadoop.fs.s3a.endpoint.region": "us-east-1"}


@pytest.mark.slow
def test_a_night_with_its_warehouse_on_s3_gives_the_tables_and_the_model_of_one_on_a_disk(
    chain: Chain, spark: SparkSession, store: Store, tmp_path: Path
) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir(BUCKET)
    settings = settings_in_the_example(store) | {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        "spark.driver.memory": "2g",
        "spark.driver.extraJavaOptions": SHORT_LIVED,
        # --jars would copy them all.
        "spark.driver.extraClassPath": ":".join([*delta_jars(), *store.jars]),
    }
    command = [str(SPARK / "spark-submit"), "--master", "local[2]"]
    command += [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    command += [*NIGHT, "--config", str(chain.config_file), f"warehouse=s3a://{BUCKET}/warehouse"]
    environment = os.environ | store.environment
    environment |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [*command, *SMALL_MODEL, CHECKPOINT_AFTER_EVERY_STEP],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    copy = tmp_path / "warehouse"
    s3fs.S3FileSystem(use_listings_cache=False).get(f"{BUCKET}/warehouse", str(copy), recursive=True)
    assert_same_tables(Warehouse(spark, str(copy)), chain.warehouse)
    assert list(copy.glob("reports/*.html"))
    assert not list((copy / "staging").glob("train-*")), "what training kept meanwhile is removed"
