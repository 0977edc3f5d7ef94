"""What the tests of ingest share: the plainest mapping, one run, and what the ledger says of each file."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import INGESTED_FILES
from llm_spark.tables.warehouse import Warehouse

Loaded = Callable[..., Config]
COLUMNS = ["ingest.columns.user=user", "ingest.columns.item=item", "ingest.columns.time=time"]


def ingest(spark: SparkSession, config: Config) -> tuple[Warehouse, Account]:
    warehouse = Warehouse(spark, config.warehouse)
    return warehouse, run_stage("ingest", warehouse, config)


def ledger(warehouse: Warehouse) -> dict[str, tuple[int, ...]]:
    """By file name: records, and those accepted, rejected and repeated."""
    names = ("num_records", "num_accepted", "num_rejected", "num_duplicates")
    rows = warehouse.read(INGESTED_FILES).collect()
    return {row["source_file"].rsplit("/", 1)[1]: tuple(row[name] for name in names) for row in rows}
