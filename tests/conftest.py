"""One tuned Spark session for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import spark as spark_room
from llm_spark.config import SparkConfig

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# A test's queries are many and see a few rows each: what they take is planning. To write a program for a query and compile it takes longer
# than to interpret it, and Spark's own check of each plan after each rule is a tenth of the JVM's work.
# Large data (test_real_data.py) and what runs in processes of its own (submitted, killed) have Spark's defaults, as every user has.
FOR_FEW_ROWS = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.lightweightPlanChangeValidation": "false",
}


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    settings = SparkConfig(
        master="local[2]",
        driver_memory="3g",
        java_options="-XX:TieredStopAtLevel=1",
        shuffle_partitions=2,
        conf={"spark.sql.adaptive.enabled": "false", "spark.default.parallelism": "2", **FOR_FEW_ROWS},
    )
    session = spark_room.session(settings, "llm_spark tests")
    yield session
    session.stop()


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not beside this checkout (../shared/data)")
    return SHARED_DATA
