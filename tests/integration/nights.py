"""Simulated logs that arrive day by day, settings for nights on them, and what two warehouses must have in common after the same nights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pyspark.sql import functions as F

from llm_spark.schemas import DATA_QUALITY, LOCKS, RUNS, TABLES
from llm_spark.simulation import SimulationConfig, write_logs
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import SIMULATION as CHAIN
from tests.killing import settings_file, table_rows, without_speeds

SIMULATION = replace(CHAIN, num_users=60)
"""From 2025-01-06 to 2025-01-13, a file a day, some of whose events are a day or more late."""

SETTINGS = [
    *("model.embedding_size=16", "model.hidden_size=24", "model.dense_size=24", "model.memory_size=12"),
    *("train.num_epochs=2", "train.batch_rows=32", "train.device=cpu", "train.checkpoint_seconds=0"),
    *("evaluate.baselines=[popularity]", "evaluate.num_replicates=100", "sessionize.num_buckets=2"),
    # So small a model on so few users need not be better than anything to pass.
    *(
        "gate.beats_popularity=none",
        "gate.beats_best_baseline=none",
        "gate.max_loss=0.99",
        "gate.missing_baseline=warn",
    ),
    "nightly.train=always",
]

_NOT_OF_THE_NIGHT = ("scored_at", "at", "created_at", "changed_at", "moves", "metrics")
"""Times, and what the registry keeps of `evaluation` and `training_metrics`, which are compared themselves."""
_NUM_DIGITS = 9
"""Sums of partitions are added in the order in which they come."""
_NOT_COMPARED = (RUNS.name, DATA_QUALITY.name, LOCKS.name)
"""They tell of runs: one that was killed is another run."""


class Logs:
    """Raw files that have arrived, of those that will."""

    def __init__(self, folder: Path, simulation: SimulationConfig = SIMULATION) -> None:
        self._all, self.folder = folder / "all_logs", folder / "logs"
        self.folder.mkdir(parents=True)
        write_logs(simulation, self._all, "jsonl")
        self.settings_file = settings_file(folder, 0, self.folder)

    def arrive(self, until: str) -> None:
        """All files of days up to this one lie in the folder."""
        for file in sorted(self._all.glob("events-*")):
            if file.name.removeprefix("events-")[:10] <= until and not (self.folder / file.name).exists():
                shutil.copy2(file, self.folder / file.name)


def rows_of(warehouse: Warehouse) -> dict[str, list[str]]:
    """Every table's rows but for times and run ids, and but for what tells of runs."""
    there = [table for table in TABLES.values() if table.name not in _NOT_COMPARED and warehouse.exists(table)]
    found = table_rows(warehouse, *there, without=_NOT_OF_THE_NIGHT, num_digits=_NUM_DIGITS)
    return found | {"training_metrics": without_speeds(found.get("training_metrics", []))}


def last_outcome(warehouse: Warehouse, stage: str) -> tuple[str, str | None]:
    """Outcome and reason of the newest run of a stage."""
    row = warehouse.read(RUNS).where(F.col("stage") == stage).orderBy(F.desc("started_at")).first()
    assert row is not None
    return row["outcome"], row["reason"]
