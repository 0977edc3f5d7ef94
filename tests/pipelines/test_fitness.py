"""What keeps a model of the registry from scoring here, and from being compared."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.errors import UserError
from llm_spark.model.artifact import read_tables
from llm_spark.pipelines.registry.aliases import Models
from llm_spark.pipelines.registry.fitness import why_it_cannot_be_compared, why_it_cannot_score
from llm_spark.pipelines.registry.token_tables import (
    SEQUENCES_ID,
    outlived_by_a_model,
    sequences_id,
    token_table_ids,
)
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from tests.pipelines.models import SPLITS, model, save_artifact, save_sequences, save_token_tables
from tests.training.sequences import SMALL_MODEL

LEFT_OUT = "leave_last_session_out"


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Tables of 12 tokens and 4 event types, and sequences of their first version; only read by the tests that share it."""
    made = Warehouse(spark, str(tmp_path_factory.mktemp("fitness") / "warehouse"))
    save_token_tables(made)
    save_sequences(made)
    save_artifact(made, "sound", **token_table_ids(made))
    return made


def test_a_model_of_these_tables_can_score_and_be_compared_also_one_that_noted_no_ids(warehouse: Warehouse) -> None:
    save_artifact(warehouse, "of an earlier version")
    for name in ("sound", "of an earlier version"):
        assert why_it_cannot_score(warehouse, model(name)) == ""
        assert why_it_cannot_be_compared(warehouse, model(name)) == ""


def test_a_model_that_is_gone_or_damaged_cannot_score(warehouse: Warehouse) -> None:
    gone = replace(model("sound"), artifact=None, reason="its artifact was removed by maintain")
    assert "was removed by maintain" in why_it_cannot_score(warehouse, gone)
    assert "no model at" in why_it_cannot_score(warehouse, model("never trained"))
    save_artifact(warehouse, "damaged")
    tables = Path(warehouse.model_path("damaged"), "tables.json")
    tables.write_bytes(tables.read_bytes()[:20])
    with pytest.raises(UserError, match=r"is damaged: tables\.json"):
        read_tables(warehouse.model_path("damaged"))
    for why in (why_it_cannot_score, why_it_cannot_be_compared):
        assert "is damaged: tables.json" in why(warehouse, model("damaged"))


def test_a_model_of_features_that_the_sessions_do_not_carry_cannot_score(warehouse: Warehouse) -> None:
    save_artifact(warehouse, "of features", replace(SMALL_MODEL, features=["quantity"]))
    why = why_it_cannot_score(warehouse, model("of features"))
    assert "wants the features quantity and the sessions carry none" in why


def test_a_model_of_a_token_table_that_was_made_anew_cannot_score(warehouse: Warehouse, tmp_path: Path) -> None:
    for table in (VOCABULARY, EVENT_TYPES):
        anew = Warehouse(warehouse.spark, str(tmp_path / table.name))
        shutil.copytree(warehouse.root, anew.root)
        for each in (VOCABULARY, EVENT_TYPES):
            shutil.rmtree(anew.path(each))
        save_token_tables(anew)
        other = VOCABULARY if table is EVENT_TYPES else EVENT_TYPES
        shutil.rmtree(anew.path(other))
        shutil.copytree(warehouse.path(other), anew.path(other))
        why = why_it_cannot_score(anew, model("sound"))
        assert "another vocabulary" in why if table is VOCABULARY else "another table event_types" in why
        assert why_it_cannot_be_compared(anew, model("sound")) == why


def test_what_may_have_seen_the_test_can_score_and_is_not_compared(warehouse: Warehouse, tmp_path: Path) -> None:
    newer = Warehouse(warehouse.spark, str(tmp_path / "newer"))
    shutil.copytree(warehouse.root, newer.root)
    save_artifact(newer, "of all", **token_table_ids(newer), splits={**SPLITS, "split": LEFT_OUT})
    save_sequences(newer, split=LEFT_OUT, validation_until=None)
    for name in ("sound", "of all"):
        assert why_it_cannot_score(newer, model(name)) == ""
    why = why_it_cannot_be_compared(newer, model("of all"))
    assert why.startswith(f"the test sequences are v2, split by {LEFT_OUT}, and model of all has seen v1, split by")
    assert why.endswith("; give sequences.split=time, so that later models can be compared")
    save_sequences(newer, validation_until="2025-01-01 00:00:00")
    why = why_it_cannot_be_compared(newer, model("sound"))
    assert why.endswith("model sound has seen events up to 2025-01-06 00:00:00")


def test_a_model_of_a_sequences_table_that_was_made_anew_can_score_and_is_not_compared(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    anew = Warehouse(warehouse.spark, str(tmp_path / "anew"))
    shutil.copytree(warehouse.root, anew.root)
    of_then = {**token_table_ids(anew), SEQUENCES_ID: sequences_id(anew), "splits": {**SPLITS, "split": LEFT_OUT}}
    save_artifact(anew, "of then", **of_then)
    save_artifact(anew, "of an earlier version", splits=of_then["splits"])
    assert why_it_cannot_be_compared(anew, model("of then")) == ""
    shutil.rmtree(anew.path(SEQUENCES))
    save_sequences(anew, split=LEFT_OUT, validation_until=None)
    assert anew.data_version(SEQUENCES) == warehouse.data_version(SEQUENCES)
    assert why_it_cannot_score(anew, model("of then")) == ""
    assert why_it_cannot_be_compared(anew, model("of an earlier version")) == ""
    assert why_it_cannot_be_compared(anew, model("of then")).startswith(
        f"the test sequences are v1 of table {sequences_id(anew)[:8]}, split by {LEFT_OUT}, and model of then has seen "
        f"v1 of table {of_then[SEQUENCES_ID][:8]}, split by"
    )


def test_token_tables_that_a_model_is_older_than_were_made_anew(warehouse: Warehouse) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    later = replace(model("later"), created_at=now)
    assert not outlived_by_a_model(warehouse, Models())
    assert not outlived_by_a_model(warehouse, Models((later,)))
    # Also where nothing is left of it but its row.
    before = replace(model("before"), created_at=now - timedelta(days=1), artifact=None)
    assert outlived_by_a_model(warehouse, Models((later, before)))
    assert outlived_by_a_model(warehouse, Models((later, before)), [SEQUENCES])
