"""A small simulated data set taken through every stage once a run, for all integration tests.

What a test needs of it, from the cheapest on:
- `chain`: the finished warehouse, to read; `chain.with_settings(...)` are its settings with some changed.
- `copied`: a copy of the finished warehouse, to change at will.
- `chain_until(stage)`: such a copy as it stood when `stage` had run: `chain_until("train")` has a champion that never scored.
"""

from __future__ import annotations

import os
import pickle
import shutil
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
from llm_spark.tables.lock import locked
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
    "evaluate.num_replicates=100",
    "sequences.min_item_count=1",
    "sessionize.num_buckets=2",
    # One that needs no history and one that sends what it learned to Python workers; test_outcome_chain.py has all.
    "evaluate.baselines=[popularity,vsknn]",
]


LAST_STAGE = list(STAGES)[-1]

# Minutes each: begun first, so that no process is left alone with one of them at the end.
LONGEST_FILES = (
    "test_standalone_cluster",
    "test_nightly",
    "test_user_memory",
    "test_real_data",
    "test_ingest_exactly_once",
    "test_late_events",
    "test_late_nights",
    "test_chain",
    "test_domains",
    "test_certified_evaluation",
    "test_train_killed",
    "test_outcome_chain",
)
MAKING_SECONDS = 1_200.0
"""How long a process waits for another that makes what both need."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {file: place for place, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, once for all processes of this run: the first to come makes it, the others wait for it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, is_made = root / name, root / f"{name}.made"
    with locked(root / f"{name}.lock", MAKING_SECONDS):
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed at it
            folder.mkdir()
            make(folder)
            is_made.touch()
    return folder


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
def after_each_stage(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`logs/`, their account `written.pickle`, and for each stage `after-STAGE/`, the warehouse as that stage left it."""

    def make(folder: Path) -> None:
        logs = write_logs(SIMULATION, folder / "logs", "jsonl")
        (folder / "written.pickle").write_bytes(pickle.dumps(logs))
        config = settings.load(simulated_config(folder, folder / "logs", "jsonl"), SMALL_MODEL, ("ingest",))
        warehouse = Warehouse(spark, config.warehouse)
        # As in every real run; the other tests do without it, for small data are faster so.
        spark.conf.set("spark.sql.adaptive.enabled", "true")
        for stage in STAGES:
            run_stage(stage, warehouse, config)
            shutil.copytree(warehouse.root, folder / f"after-{stage}")
        spark.conf.set("spark.sql.adaptive.enabled", "false")

    return made_once(tmp_path_factory, "chain", make)


@pytest.fixture(scope="session")
def chain(spark: SparkSession, after_each_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The finished chain in a warehouse of this process, so that no other's runs are seen in it. Not to be changed."""
    folder = tmp_path_factory.mktemp("own-chain")
    file = simulated_config(folder, after_each_stage / "logs", "jsonl")
    config = settings.load(file, SMALL_MODEL, ("ingest",))
    shutil.copytree(after_each_stage / f"after-{LAST_STAGE}", config.warehouse)
    logs = pickle.loads((after_each_stage / "written.pickle").read_bytes())
    return Chain(Warehouse(spark, config.warehouse), config, logs, file)


@pytest.fixture
def chain_until(spark: SparkSession, after_each_stage: Path, tmp_path: Path) -> Callable[[str], Warehouse]:
    """Gives a copy of the chain's warehouse as a stage left it, in this test's folder, to change at will."""

    def copy(stage: str) -> Warehouse:
        root = tmp_path / f"after-{stage}"
        shutil.copytree(after_each_stage / f"after-{stage}", root)
        return Warehouse(spark, str(root))

    return copy


@pytest.fixture
def copied(chain_until: Callable[[str], Warehouse]) -> Warehouse:
    """The chain's finished warehouse, to change at will."""
    return chain_until(LAST_STAGE)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder for raw files, empty."""
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Config]:
    """Settings with their warehouse in this test's folder."""

    def load(*overrides: str, file: Path | None = None) -> Config:
        return settings.load(file, [f"warehouse={tmp_path / 'warehouse'}", *overrides], ("ingest",))

    return load
