"""One tuned Spark session for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import spark as spark_room
from llm_spark.config import SparkConfig

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    settings = SparkConfig(
        master="local[2]",
        driver_memory="3g",
        java_options="-XX:TieredStopAtLevel=1",
        shuffle_partitions=2,
        conf={"spark.sql.adaptive.enabled": "false", "spark.default.parallelism": "2"},
    )
    session = spark_room.session(settings, "llm_spark tests")
    yield session
    session.stop()


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not beside this checkout (../shared/data)")
    return SHARED_DATA
