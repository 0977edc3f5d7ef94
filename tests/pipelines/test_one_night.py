"""A night's lock, and what is told where the storage fails before its first step."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.errors import UserError
from llm_spark.pipelines import night
from llm_spark.pipelines.night import one_night, run_by_hand
from llm_spark.pipelines.nightly import nightly
from llm_spark.tables.lease import held_alone
from llm_spark.tables.warehouse import Warehouse


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    made = Warehouse(spark, str(tmp_path / "warehouse"))
    Path(made.root).mkdir()
    return made


def test_a_second_night_waits_as_long_as_it_is_told_to_and_names_the_first(warehouse: Warehouse) -> None:
    config = settings.load(None, [f"warehouse={warehouse.root}", "nightly.wait_minutes=0.005"])
    with one_night(warehouse, config):
        # It is another process that the kernel keeps out; to this one the lock is the same file opened again.
        with pytest.raises(UserError, match=r"held for 0\.3 s by the night of the newest day, run \w+, process \d+"):
            nightly(warehouse, config)
        with pytest.raises(UserError, match=r"is held by the night of the newest day"):
            run_by_hand("sessionize", warehouse, config)


def test_a_stage_that_makes_tables_runs_by_hand_once_at_a_time(warehouse: Warehouse) -> None:
    config = settings.load(None, [f"warehouse={warehouse.root}"])
    with held_alone(warehouse, "sessionize", "`llm-spark sessionize`"):
        with pytest.raises(UserError, match=r"\.sessionize\.lock' is held by `llm-spark sessionize`, process \d+"):
            run_by_hand("sessionize", warehouse, config)
        with pytest.raises(UserError, match="run `llm-spark sessionize` first"):
            run_by_hand("sequences", warehouse, config)


def test_a_storage_that_fails_before_the_first_step_is_told_in_one_line(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = settings.load(None, [f"warehouse={warehouse.root}"])
    monkeypatch.setattr(night, "held", full)
    monkeypatch.setattr(night, "held_by_nobody", full)
    for run in (lambda: nightly(warehouse, config), lambda: run_by_hand("sessionize", warehouse, config)):
        with pytest.raises(UserError, match=f"warehouse '{warehouse.root}': the disk is full: make room"):
            run()
