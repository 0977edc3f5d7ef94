"""A small simulated data set taken through every stage once, for all integration tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.pipelines import STAGES
from llm_spark.pipelines.stages import run_stage
from llm_spark.simulation import LogsWritten, SimulationConfig, write_logs
from llm_spark.tables.warehouse import Warehouse

SIMULATION = SimulationConfig(
    num_users=120,
    num_items=60,
    num_days=8,
    num_tastes=4,
    num_intents=3,
    items_per_intent=25,
    mean_sessions_per_user=5.0,
)

# A network that learns in seconds; every part of it is on.
SMALL_MODEL = [
    "model.embedding_size=16",
    "model.hidden_size=24",
    "model.dense_size=24",
    "model.memory_size=12",
    "train.num_epochs=6",
    "train.batch_rows=32",
    "train.device=cpu",
    "gate.enabled=false",
    "evaluate.baselines=[popularity, vsknn]",
    "evaluate.num_replicates=100",
    "sequences.min_item_count=1",
    "sessionize.num_buckets=2",
    # One that needs no history and one that sends what it learned to Python workers; test_outcome_chain.py has all.
    "evaluate.baselines=[popularity,vsknn]",
]


# Minutes each: begun first, so that no process is left alone with one of them at the end.
LONGEST_FILES = ("test_submit", "test_real_data", "test_bad_input", "test_chain")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {file: place for place, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@dataclass(frozen=True)
class Chain:
    """A warehouse that every stage has run on, with what went into it."""

    warehouse: Warehouse
    config: Config
    logs: LogsWritten
    config_file: Path

    def with_settings(self, *overrides: str) -> Config:
        return settings.load(self.config_file, [*SMALL_MODEL, *overrides], ("ingest",))

    def run(self, stage: str) -> str:
        """Run a stage again; returns why there was nothing to do, or an empty text."""
        return run_stage(stage, self.warehouse, self.config).nothing_to_do


def simulated_config(folder: Path, logs: Path, form: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(
        f"""
warehouse: {folder / "warehouse"}
ingest:
  paths: ["{logs}"]
  format: {form}
  columns: {{user: user, item: item, time: time, type: type, value: value, attributes: {{agent: agent}}}}
  filters: ["NOT coalesce(agent, '') LIKE '%bot%'"]
"""
    )
    return file


@pytest.fixture(scope="session")
def chain(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    logs = write_logs(SIMULATION, folder / "logs", "jsonl")
    file = simulated_config(folder, folder / "logs", "jsonl")
    config = settings.load(file, SMALL_MODEL, ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    # As in every real run; the other tests do without it, for small data are faster so.
    spark.conf.set("spark.sql.adaptive.enabled", "true")
    for stage in STAGES:
        run_stage(stage, warehouse, config)
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    return Chain(warehouse, config, logs, file)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Config]:
    """Settings with their warehouse in this test's folder."""

    def load(*overrides: str, file: Path | None = None) -> Config:
        return settings.load(file, [f"warehouse={tmp_path / 'warehouse'}", *overrides], ("ingest",))

    return load
