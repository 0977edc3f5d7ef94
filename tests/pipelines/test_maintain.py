"""Maintenance of a warehouse: what a model was trained on stays until it is forced away, and being killed does no harm."""

from __future__ import annotations

import json
import logging
import shutil
from datetime import date, datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.pipelines import maintain as stage
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry import retention
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import PREDICTIONS, VOCABULARY
from llm_spark.tables.maintenance import data_files, files_of_version
from llm_spark.tables.warehouse import Warehouse
from tests.pipelines.models import model, promote_in_turn, save_artifact

PINNED, UNPINNED, NEWEST = 1, 2, 3


def config(*overrides: str) -> Config:
    return settings.load(None, list(overrides))


NOW = config("maintain.retention_hours=0")


def items(spark: SparkSession, *tokens: int) -> DataFrame:
    rows = [(token, f"i{token}", 1, datetime(2025, 1, 1)) for token in tokens]
    return spark.createDataFrame(rows, VOCABULARY.schema)


@pytest.fixture(scope="module")
def three_versions(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with three versions of a table, of which a model was trained on the first; to copy."""
    made = Warehouse(spark, str(tmp_path_factory.mktemp("three-versions") / "warehouse"))
    for tokens in ((2,), (2, 3), (2, 3, 4)):
        made.replace(VOCABULARY, items(spark, *tokens).coalesce(1), {"tokens": tokens})
    promote_in_turn(made, model("m1", table_versions=json.dumps({VOCABULARY.name: PINNED})))
    return Path(made.root)


@pytest.fixture
def warehouse(three_versions: Path, spark: SparkSession, tmp_path: Path) -> Warehouse:
    shutil.copytree(three_versions, tmp_path / "warehouse")
    return Warehouse(spark, str(tmp_path / "warehouse"))


def tokens(warehouse: Warehouse, version: int | None = None) -> list[int]:
    return sorted(row[0] for row in warehouse.read(VOCABULARY, version).select("token").collect())


def names(warehouse: Warehouse) -> set[str]:
    return {file.name for file in data_files(warehouse.spark, warehouse.path(VOCABULARY))}


def files_of(warehouse: Warehouse, version: int) -> set[str]:
    return files_of_version(warehouse.spark, warehouse.path(VOCABULARY), version)


def test_a_version_that_a_model_was_trained_on_outlives_maintenance_until_it_is_forced_away(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, unpinned = files_of(warehouse, PINNED), files_of(warehouse, UNPINNED)
    assert run_stage("maintain", warehouse, config()).nothing_to_do, "all files are younger than the retention"
    assert run_stage("maintain", warehouse, NOW).rows_out["old_files_removed"] >= len(unpinned)
    assert not unpinned & names(warehouse)
    assert (tokens(warehouse, PINNED), tokens(warehouse)) == ([2], [2, 3, 4])
    assert warehouse.data_version(VOCABULARY) == NEWEST
    assert run_stage("maintain", warehouse, NOW).nothing_to_do
    monkeypatch.setattr(logging.getLogger("llm_spark"), "propagate", True)
    with caplog.at_level("WARNING", logger="llm_spark"):
        run_stage("maintain", warehouse, NOW, force=True)
    assert f"removed by --force: vocabulary v{PINNED}, which m1 was trained on" in caplog.text
    assert not pinned & names(warehouse)
    assert tokens(warehouse) == [2, 3, 4]


def test_maintenance_that_was_killed_half_way_is_run_again_as_if_it_had_not_been(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        warehouse.insert_new(VOCABULARY, items(warehouse.spark, 10 + number), "item_id")

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "remove_old_files", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("maintain", warehouse, NOW)
    # The files were joined, none was removed; and now one of those that may go is gone, as after half a removal.
    (gone,) = files_of(warehouse, UNPINNED)
    (Path(warehouse.path(VOCABULARY)) / gone).unlink()
    run_stage("maintain", warehouse, NOW)
    assert names(warehouse) == files_of(warehouse, PINNED) | files_of(warehouse, warehouse.version(VOCABULARY))
    assert (tokens(warehouse, PINNED), tokens(warehouse)) == ([2], [2, 3, 4, 10, 11, 12, 13, 14])


def test_a_spare_model_loses_its_artifact_and_then_the_version_that_it_was_trained_on(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two nights later the champion of the first is neither champion nor what a rollback returns to.
    promote_in_turn(warehouse, *(model(f"m{night}", night, json.dumps({VOCABULARY.name: NEWEST})) for night in (2, 3)))
    for model_id in ("m1", "m2", "m3"):
        save_artifact(warehouse, model_id)
    predicted = {"as_of_date": date(2026, 1, 1), "user_id": "u", "rank": 1, "item_id": "i2", "model_id": "m1"}
    row = tuple(predicted.get(name) for name in PREDICTIONS.schema.names)
    warehouse.append(PREDICTIONS, warehouse.spark.createDataFrame([row], PREDICTIONS.schema).coalesce(1), "first night")
    retention.remove_artifacts(warehouse, 0, Account("maintain"))
    assert read_models(warehouse).find("m1").artifact, "the newest predictions of a user name the model"
    later = {**predicted, "as_of_date": date(2026, 1, 2), "model_id": "m3"}
    row = tuple(later.get(name) for name in PREDICTIONS.schema.names)
    warehouse.append(
        PREDICTIONS, warehouse.spark.createDataFrame([row], PREDICTIONS.schema).coalesce(1), "second night"
    )

    def killed(path: str) -> None:
        (Path(path) / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(retention, "discard_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            retention.remove_artifacts(warehouse, 0, Account("maintain"))
    assert read_models(warehouse).find("m1").artifact is None, "noted before it is gone"
    account = Account("maintain")
    retention.remove_artifacts(warehouse, 0, account)
    assert "removed the artifacts of archived models: m1" in account.remarks
    assert {path.name for path in Path(warehouse.root, "models").iterdir()} == {"m2", "m3"}
    assert "its artifact was removed on" in read_models(warehouse).find("m1").reason
    assert {pin.version for pin in stage.pins_of_models(warehouse)} == {NEWEST}, "nothing pins the first any more"
