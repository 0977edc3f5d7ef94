"""Logs that nobody of this project wrote, from raw files to predictions; their oddities counted independently with pandas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.pipelines import STAGES
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, EVENTS, EVENTS_REJECTED, PREDICTIONS, SESSIONS
from llm_spark.tables.warehouse import Warehouse
from tests.conftest import FOR_FEW_ROWS

CONF = Path(__file__).parents[2] / "conf"
QUICK = [
    "train.num_epochs=1",
    "train.device=cpu",
    "gate.enabled=false",
    "evaluate.baselines=[popularity, vsknn]",
    "evaluate.num_replicates=100",
    "sessionize.num_buckets=2",
]


@pytest.fixture(autouse=True, scope="module")
def sparks_defaults(spark: SparkSession) -> Iterator[None]:
    """Queries as compiled programs, as every user has them and as so many rows need them."""
    for name in FOR_FEW_ROWS:
        spark.conf.unset(name)
    yield
    for name, value in FOR_FEW_ROWS.items():
        spark.conf.set(name, value)


def run_all(spark: SparkSession, name: str, paths: list[str], folder: Path, *overrides: str) -> Warehouse:
    quoted = ",".join(f'"{path}"' for path in paths)
    given = [f"warehouse={folder}", f"ingest.paths=[{quoted}]", *QUICK, *overrides]
    config = settings.load(CONF / name, given, ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    for stage in STAGES:
        run_stage(stage, warehouse, config)
    users = warehouse.read(SESSIONS).select("user_id").distinct().count()
    assert warehouse.read(PREDICTIONS).where("user_id IS NOT NULL AND rank = 1").count() == users
    recall = {
        row["recommender"]: row["value"]
        for row in warehouse.read(EVALUATION)
        .where("slice = 'all' AND name = 'recall@20' AND against IS NULL")
        .collect()
    }
    assert recall["model"] > 0
    return warehouse


def reasons(warehouse: Warehouse) -> dict[str, int]:
    return {row["reason"]: row["count"] for row in warehouse.read(EVENTS_REJECTED).groupBy("reason").count().collect()}


def test_a_web_server_log_loses_exactly_its_truncated_line(
    spark: SparkSession, shared_data: Path, tmp_path: Path
) -> None:
    file = shared_data / "apache-logs" / "apache_logs"
    warehouse = run_all(spark, "access_log.yaml", [str(file)], tmp_path)
    found = reasons(warehouse)
    assert found.pop("unparsable") == 1
    assert set(found) == {"filtered"}
    broken = warehouse.read(EVENTS_REJECTED).where("reason = 'unparsable'").first()
    assert broken is not None
    assert broken["raw"] in file.read_text()
    assert broken["raw"].count('"') % 2 == 1, "the line that was cut inside a quoted field"
    agents = warehouse.read(EVENTS).where(F.col("item_id").rlike(r"\.(png|css|js)$"))
    assert agents.isEmpty()


def test_click_sessions_without_users_keep_their_float_seconds_and_lose_one_duplicate(
    spark: SparkSession, shared_data: Path, tmp_path: Path
) -> None:
    files = sorted((shared_data / "rsc15-100k").glob("yoochoose-clicks-*.txt"))
    raw = pd.concat([pd.read_csv(file, sep="\t", dtype={"SessionId": str, "ItemId": str}) for file in files])
    warehouse = run_all(spark, "rsc15.yaml", [str(file) for file in files], tmp_path, "model.hidden_size=32")
    events = warehouse.read(EVENTS).select("user_id", "item_id", F.unix_millis("event_time").alias("ms")).toPandas()
    expected = raw.assign(ms=(raw["Time"] * 1000).round().astype("int64"))[
        ["SessionId", "ItemId", "ms"]
    ].drop_duplicates()
    assert len(raw) - len(expected) == 1
    assert set(events.itertuples(index=False, name=None)) == set(expected.itertuples(index=False, name=None))
    assert warehouse.read(SESSIONS).count() == raw["SessionId"].nunique()
    assert not reasons(warehouse)


def test_a_web_shop_loses_no_invoice_line_without_a_reason(
    spark: SparkSession, shared_data: Path, tmp_path: Path
) -> None:
    retail_days = sorted((shared_data / "online-retail" / "by-day").glob("*.csv"))[:20]
    raw = pd.concat([pd.read_csv(file, dtype=str, keep_default_na=False) for file in retail_days])
    warehouse = run_all(
        spark, "online_retail.yaml", [str(day) for day in retail_days], tmp_path, "model.hidden_size=32"
    )
    numbers = raw[["Quantity", "UnitPrice"]].astype(float)
    kept = ~raw["InvoiceNo"].str.upper().str.startswith("C") & (numbers["Quantity"] > 0) & (numbers["UnitPrice"] > 0)
    unknown = raw["CustomerID"].str.strip() == ""
    assert reasons(warehouse) == {"filtered": int((~kept).sum()), "missing_user": int((kept & unknown).sum())}
    accepted = raw[kept & ~unknown]
    identity = pd.DataFrame(
        {
            "user": accepted["CustomerID"].str.replace(r"\.0$", "", regex=True),
            "item": accepted["StockCode"].str.strip().str.upper(),
            "time": accepted["InvoiceDate"],
            "value": (accepted["Quantity"].astype(float) * accepted["UnitPrice"].astype(float)).round(6),
            "invoice": accepted["InvoiceNo"],
        }
    ).drop_duplicates()
    events = warehouse.read(EVENTS)
    assert events.count() == len(identity) < len(accepted)
    assert {row[0] for row in events.select("user_id").distinct().collect()} == set(identity["user"])
    assert {row[0] for row in events.select("item_id").distinct().collect()} == set(identity["item"])
    assert warehouse.read(SESSIONS).count() == identity["invoice"].nunique()
    local = events.select(
        F.date_format(F.from_utc_timestamp("event_time", "Europe/London"), "yyyy-MM-dd HH:mm:ss")
    ).distinct()
    assert {row[0] for row in local.collect()} == set(identity["time"])
