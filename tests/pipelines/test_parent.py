"""Which champion a new model may begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.parent import Parent, choose_parent
from llm_spark.transforms.history_kernel import BY_TIME
from tests.training.sequences import SMALL_MODEL

SPLITS: dict[str, str | None] = {
    "split": BY_TIME,
    "train_until": "2025-01-05 00:00:00",
    "validation_until": "2025-01-06 00:00:00",
}
TABLE_IDS = {"vocabulary_id": "v", "event_types_id": "e"}
VERSIONS = {"sequences": 7, "vocabulary": 3, "event_types": 1}


def choice(folder: Path, **now: Any) -> Parent:
    """Over a champion with 12 tokens and 4 event types, trained at VERSIONS and SPLITS on tables of these ids."""
    model = NextEventModel(SMALL_MODEL, 12, 4)
    tables = {"splits": SPLITS, "data_versions": VERSIONS, **TABLE_IDS}
    save_manifest(str(folder), save_content(str(folder), model, {}, tables))
    given = {
        "model_config": SMALL_MODEL,
        "sizes": {"num_tokens": 12, "num_event_types": 4},
        "data_versions": VERSIONS,
        "splits": SPLITS,
        "table_ids": TABLE_IDS,
        **now,
    }
    return choose_parent(SimpleNamespace(model_path=lambda model_id: str(folder)), "m1", **given)


def test_a_champion_of_the_same_shape_is_the_parent_also_of_a_grown_vocabulary(tmp_path: Path) -> None:
    assert choice(tmp_path) == Parent("m1", str(tmp_path))
    grown = {"num_tokens": 20, "num_event_types": 5}
    later = {**SPLITS, "train_until": "2025-01-07 00:00:00", "validation_until": "2025-01-08 00:00:00"}
    versions = {name: version + 1 for name, version in VERSIONS.items()}
    assert choice(tmp_path, sizes=grown, splits=later, data_versions=versions).path == str(tmp_path)


@pytest.mark.parametrize(
    ("now", "objection"),
    [
        ({"model_config": replace(SMALL_MODEL, dense_size=9)}, "model.dense_size is 9 and was 16"),
        ({"sizes": {"num_tokens": 11, "num_event_types": 4}}, "num_tokens is 11 and was 12"),
        ({"sizes": {"num_tokens": 12, "num_event_types": 3}}, "num_event_types is 3 and was 4"),
        ({"data_versions": {**VERSIONS, "vocabulary": 0}}, "vocabulary has been made anew"),
        ({"table_ids": TABLE_IDS | {"vocabulary_id": "w"}}, "the table vocabulary has been made anew"),
        ({"table_ids": TABLE_IDS | {"event_types_id": "f"}}, "the table event_types has been made anew"),
        ({"splits": {**SPLITS, "train_until": "2025-01-04 00:00:00"}}, "its train_until was 2025-01-05"),
        ({"splits": {**SPLITS, "validation_until": "2025-01-05 12:00:00"}}, "its validation_until was 2025-01-06"),
        ({"splits": {"split": "leave_last_session_out"}}, "only where both are split by time"),
    ],
)
def test_a_champion_that_does_not_fit_is_passed_over_with_the_reason(
    tmp_path: Path, now: dict[str, Any], objection: str
) -> None:
    parent = choice(tmp_path, **now)
    assert (parent.model_id, parent.path) == (None, None)
    assert objection in parent.objection


def test_a_damaged_champion_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    assert choice(tmp_path).path
    (tmp_path / "weights.safetensors").write_bytes(b"")
    warehouse = SimpleNamespace(model_path=lambda model_id: str(tmp_path))
    parent = choose_parent(warehouse, "m1", SMALL_MODEL, {"num_tokens": 12}, VERSIONS, SPLITS, TABLE_IDS)
    assert "is damaged: weights.safetensors" in parent.objection


def test_the_first_model_has_no_parent() -> None:
    assert choose_parent(SimpleNamespace(), None, SMALL_MODEL, {}, {}, {}, {}).objection == "there is no champion yet"
