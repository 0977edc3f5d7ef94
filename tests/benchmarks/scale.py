"""What a million events cost, stage by stage: python -m tests.benchmarks.scale [--quick]

A generated log (20,000 items, 25 events a user, Zipf) of two sizes goes through ingest, sessionize, sequences, train (a
quarter of an epoch, the default network), evaluate (beside popularity) and score, each size in a warehouse of its own, in one JVM that
has run the chain before. From the two sizes: the seconds and bytes that a further million events cost, the seconds that are
there anyhow, and the slope in log-log, which is 1 where twice the events take twice the time. Every item is a token, so that
the vocabulary is the same 20,000 in both: with `min_item_count` above 1 a longer log has more of them, and training, evaluate
and score grow by both.

scale.md is made from these figures; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark import spark as spark_room
from llm_spark.config import Config, SparkConfig
from llm_spark.pipelines.stages import run_stage
from llm_spark.tables.warehouse import Warehouse
from tests.benchmarks.event_logs import LogShape, event_log

STAGES = ("ingest", "sessionize", "sequences", "train", "evaluate", "score")
MILLION = 1_000_000
EPOCHS = 0.25


def write_log(folder: Path, num_events: int) -> None:
    folder.mkdir(parents=True)
    for place, piece in enumerate(event_log(LogShape(num_events, num_days=60))):
        pq.write_table(piece, folder / f"{place}.parquet")


def chain_config(folder: Path) -> Config:
    file = folder / "scale.yaml"
    file.write_text(
        f"""
warehouse: {folder / "warehouse"}
ingest:
  paths: [{folder / "raw"}]
  format: parquet
  columns: {{user: user_id, item: item_id, time: event_time, type: event_type, value: value, attributes: {{id: event_id}}}}
sequences: {{min_item_count: 1}}
train: {{num_epochs: {EPOCHS}}}
evaluate: {{baselines: [popularity], num_replicates: 100, ks: [10]}}
gate: {{enabled: false}}
"""
    )
    return settings.load(str(file), [], ("ingest",))


def costs(spark: SparkSession, folder: Path, num_events: int) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each stage, and bytes of each table and of the models."""
    write_log(folder / "raw", num_events)
    config = chain_config(folder)
    warehouse = Warehouse(spark, config.warehouse)
    seconds = {}
    for stage in STAGES:
        seconds[stage] = run_stage(stage, warehouse, config).seconds
        print(f"  {num_events:,} events: {stage} {seconds[stage]:.1f} s", flush=True)
    sizes = {state.name: state.num_bytes for state in warehouse.states()}
    models = Path(config.warehouse) / "models"
    sizes["model artifacts"] = sum(file.stat().st_size for file in models.rglob("*") if file.is_file())
    return seconds, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the events")
    given = parser.parse_args()
    small, large = (50_000, 200_000) if given.quick else (500_000, 2_000_000)
    spark = spark_room.session(SparkConfig(driver_memory="6g"), "benchmark scale")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        costs(spark, folder / "first", 20_000)  # pays for what is compiled and started only once
        seconds_small, sizes_small = costs(spark, folder / "small", small)
        seconds_large, sizes_large = costs(spark, folder / "large", large)
    spark.stop()
    more = (large - small) / MILLION
    print(f"{'stage':<12}{small:>12,}{large:>12,}  s a million   fixed s   slope")
    result: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        few, many = seconds_small[stage], seconds_large[stage]
        each = (many - few) / more
        fixed, slope = few - each * small / MILLION, math.log(many / few) / math.log(large / small)
        result[stage] = {
            "seconds_per_million": round(each, 1),
            "fixed_seconds": round(fixed, 1),
            "slope": round(slope, 2),
        }
        print(f"{stage:<12}{few:>10.1f} s{many:>10.1f} s{each:>13.1f}{fixed:>10.1f}{slope:>8.2f}")
    print()
    for table, num_bytes in sizes_large.items():
        each = (num_bytes - sizes_small.get(table, 0)) / more / 2**20
        if each >= 0.1:
            result.setdefault("mebibytes_per_million", {})[table] = round(each, 1)
            print(f"{table:<20}{each:>8.1f} MiB a million events")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(json.dumps({"benchmark": "scale", **result}))


if __name__ == "__main__":
    main()
