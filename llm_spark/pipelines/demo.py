"""demo: simulated logs through every stage, beside what is the best reachable, and a first query."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.logs import log, progress
from llm_spark.pipelines import STAGES
from llm_spark.pipelines.query import print_query, print_table
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.simulate import simulate
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, SEQUENCES, VOCABULARY
from llm_spark.simulation import Oracle, OracleResult, Process, SimulationConfig
from llm_spark.tables.warehouse import Warehouse

K = 10

_SETTINGS = """\
# The demo's settings. Every stage runs with them: llm-spark STAGE --config {file}
warehouse: {warehouse}
spark: {{java_options: -XX:TieredStopAtLevel=1}}  # small data: the JVM shall start fast rather than run long work fast
ingest:
  paths: [{logs}]
  format: jsonl
  columns: {{user: user, item: item, time: time, type: type, value: value, attributes: {{agent: agent}}}}
  filters: ["NOT coalesce(agent, '') LIKE '%bot%'"]
sequences: {{max_tokens: 500, min_item_count: 1}}
train: {{num_epochs: 6, batch_rows: 128, learning_rate: 0.02}}
evaluate: {{ks: [{k}], baselines: [popularity, recency, markov]}}  # the other three take longer
score: {{k: {k}}}
"""

_FIRST_QUERY = """
SELECT user_id, as_of_date, max(next) FILTER (WHERE rank = 1) AS first, max(next) FILTER (WHERE rank = 2) AS second,
       max(next) FILTER (WHERE rank = 3) AS third
FROM (SELECT *, concat(item_id, ' ', cast(round(100 * probability) AS int), ' %') AS next FROM predictions_current WHERE source = 'model')
GROUP BY user_id, as_of_date ORDER BY user_id LIMIT 10
"""
_NEXT_QUERY = (
    "SELECT item_id, count(*) AS num_users FROM predictions_current WHERE source = 'model' AND rank = 1 "
    "GROUP BY item_id ORDER BY num_users DESC LIMIT 5"
)


def prepare(folder: Path) -> Path:
    """Write the raw logs and the settings into `folder`, unless they are there; returns the settings file."""
    logs, file = folder / "raw_logs", folder / "demo.yaml"
    if not _is_complete(logs):
        simulate(logs, "jsonl", [])
    places = {"file": file, "warehouse": json.dumps(str(folder / "warehouse")), "logs": json.dumps(str(logs))}
    file.write_text(_SETTINGS.format(k=K, **places))
    return file


def _is_complete(logs: Path) -> bool:
    account = logs / "_simulation.json"
    return account.is_file() and bool(json.loads(account.read_text()).get("complete"))


def run(warehouse: Warehouse, config: Config, config_file: Path) -> None:
    """Run every stage, then print how near the model comes to the best reachable, and a query's answer."""
    for stage in STAGES:
        run_stage(stage, warehouse, config)
    model_id = champion(warehouse).model_id
    with progress("the best reachable recall"):
        oracle = best_reachable(warehouse, SimulationConfig(), K)
    of_model = (F.col("model_id") == model_id) & F.col("against").isNull()
    found = warehouse.read(EVALUATION).where(of_model & (F.col("slice") == "all") & (F.col("name") == f"recall@{K}"))
    recall = {row["recommender"]: row["value"] for row in found.collect()}
    rows = [
        ("best reachable: knows the process, infers taste and intent", oracle.recall),
        ("the model: long-term and short-term memory", recall["model"]),
        ("best reachable without long-term memory", oracle.session_only_recall),
        *[(name, recall[name]) for name in ("popularity",) if name in recall],
    ]
    print(f"\nHow often the true next item is among the first {K} ({oracle.num_targets:,} test positions):")
    print_table(["recommender", f"recall@{K}"], rows)
    print("\nWhat users will do next:")
    print_query(warehouse, _FIRST_QUERY, "table", 10)
    command = "llm-spark" if shutil.which("llm-spark") else shlex.quote(sys.argv[0])
    query = f'{command} sql --config {shlex.quote(str(config_file))} "{_NEXT_QUERY}"'
    print(f"\nAsk further:\n  {query}")
    log.info("the raw logs, the settings and the warehouse are in '%s'", config_file.parent)


def best_reachable(warehouse: Warehouse, simulation: SimulationConfig, k: int) -> OracleResult:
    """The oracle on the very positions that the model was tested on; the warehouse holds the logs of `simulation`."""
    test = warehouse.read(SEQUENCES).where(F.col("split") == "test")
    histories = [
        (row["item_ids"], row["session_starts"], row["first_target"])
        for row in _with_item_ids(warehouse, test).toLocalIterator()
    ]
    return Oracle(Process.draw(simulation)).best_recall(histories, k)


def _with_item_ids(warehouse: Warehouse, test: DataFrame) -> DataFrame:
    steps = test.select("sequence_id", "session_starts", "first_target", F.posexplode("tokens").alias("place", "token"))
    named = steps.join(F.broadcast(warehouse.read(VOCABULARY).select("token", "item_id")), "token", "left")
    placed = F.struct("place", F.coalesce("item_id", F.lit("unknown")).alias("item_id"))
    grouped = named.groupBy("sequence_id", "session_starts", "first_target").agg(
        F.sort_array(F.collect_list(placed)).alias("steps")
    )
    return grouped.select("session_starts", "first_target", F.col("steps.item_id").alias("item_ids"))
