"""Maintenance of a warehouse: what a model was trained on stays until it is forced away, and being killed does no harm."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.pipelines import maintain as stage
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry import retention
from llm_spark.pipelines.registry.aliases import read_models
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import MODELS, PREDICTIONS, VOCABULARY
from llm_spark.tables.maintenance import KEEP_LOG, data_files, files_of_version
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


def back_date(warehouse: Warehouse, num_days_of: dict[int, int]) -> None:
    """Let each version of the vocabulary, and the files that came with it, be so many days old."""
    root = Path(warehouse.path(VOCABULARY))
    log = root / "_delta_log"
    for version, num_days in num_days_of.items():
        at_s = time.time() - num_days * 86_400
        file = log / f"{version:020}.json"
        actions = [json.loads(line) for line in file.read_text().splitlines()]
        for action in actions:
            action.get("commitInfo", {})["timestamp"] = int(at_s * 1000)
            for added in files_named(action, "add"):
                added["modificationTime"] = int(at_s * 1000)
                os.utime(root / added["path"], (at_s, at_s))
            for removed in files_named(action, "remove"):
                removed["deletionTimestamp"] = int(at_s * 1000)
        file.write_text("".join(json.dumps(action) + "\n" for action in actions))
        os.utime(file, (at_s, at_s))
    for checksum in log.glob("*.crc"):
        checksum.unlink()
    warehouse.spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]


def files_named(action: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [action[kind]] if kind in action else []


def test_a_version_stays_readable_for_the_whole_of_a_retention_longer_than_delta_remembers_removals(
    warehouse: Warehouse,
) -> None:
    back_date(warehouse, {0: 50, PINNED: 50, UNPINNED: 50, NEWEST: 10})
    assert KEEP_LOG[0] not in warehouse.log(MODELS).properties
    run_stage("maintain", warehouse, config("maintain.retention_hours=1000"))
    # Delta by itself reads no version older than a week but the newest.
    assert tokens(warehouse, UNPINNED) == [2, 3], "it was the newest until ten days ago"
    assert (tokens(warehouse, PINNED), tokens(warehouse)) == ([2], [2, 3, 4])
    assert warehouse.log(MODELS).properties[KEEP_LOG[0]] == KEEP_LOG[1], "else it forgets after 720 hours"


def test_a_retention_shorter_than_delta_s_own_is_kept_to_as_well(warehouse: Warehouse) -> None:
    back_date(warehouse, {0: 50, PINNED: 50, UNPINNED: 50, NEWEST: 3})
    pinned, unpinned = files_of(warehouse, PINNED), files_of(warehouse, UNPINNED)
    assert run_stage("maintain", warehouse, config("maintain.retention_hours=48")).rows_out["old_files_removed"] == 1
    assert not unpinned & names(warehouse)
    assert pinned | files_of(warehouse, NEWEST) == names(warehouse)


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
        account = Account("maintain")
        with pytest.raises(KeyboardInterrupt):
            retention.remove_artifacts(warehouse, 0, account)
    assert read_models(warehouse).find("m1").artifact is None, "noted before it is gone"
    assert account.remarks == [
        f"pinned no longer: vocabulary v{PINNED}, which m1 was trained on, whose artifact goes by maintain.keep_models=0"
    ]
    account = Account("maintain")
    retention.remove_artifacts(warehouse, 0, account)
    assert "removed the artifacts of archived models: m1" in account.remarks
    assert {path.name for path in Path(warehouse.root, "models").iterdir()} == {"m2", "m3"}
    reason = read_models(warehouse).find("m1").reason
    assert "its artifact was removed on" in reason
    assert reason.endswith("what it was trained on is pinned no longer")
    assert {pin.version for pin in stage.pins_of_models(warehouse)} == {NEWEST}, "nothing pins the first any more"
