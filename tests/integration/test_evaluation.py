"""What evaluate measures on the small chain: every figure with its interval, all recommenders on the same positions; and bad input."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from llm_spark.errors import DataError, UsageError
from llm_spark.pipelines.evaluation_window import EvaluationWindow, open_window, require_testable
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVALUATION, EVENT_TYPES, SEQUENCES, VOCABULARY, Table
from llm_spark.tables.warehouse import Warehouse
from tests.integration.conftest import Chain


def opened(warehouse: Warehouse, chain: Chain, *settings: str) -> EvaluationWindow:
    return open_window(warehouse, chain.with_settings(*settings), [champion(warehouse)])


def keep_of_test(warehouse: Warehouse, kept: Column) -> None:
    """Take the other test rows out of the sequences, under the note of the whole table."""
    rows = warehouse.read(SEQUENCES).where((F.col("split") != "test") | kept).localCheckpoint()
    warehouse.replace(SEQUENCES, rows, warehouse.origin(SEQUENCES) or {})


def test_every_figure_has_its_interval_and_number_of_examples(chain: Chain) -> None:
    rows = chain.warehouse.read(EVALUATION).collect()
    figures_of = {}
    for row in rows:
        figures_of.setdefault((row["recommender"], row["against"]), {})[row["slice"], row["name"]] = row
    names = chain.config.evaluate.baselines
    assert set(figures_of) == {("model", None)} | {(n, None) for n in names} | {("model", n) for n in names}
    own = figures_of.pop(("model", None))
    shared = {frozenset(of) for of in figures_of.values()}
    assert len(shared) == 1, "the same figures of every recommender"
    alone = set(own) - next(iter(shared))
    assert all(name in ("confidence", "calibration_error") or place.startswith("confidence_") for place, name in alone)
    for row in rows:
        assert row["num_examples"] > 0
        if row["ci_low"] is not None:
            assert row["ci_low"] <= row["value"] <= row["ci_high"] or row["num_examples"] < 50
    of_all = [row for row in rows if row["slice"] == "all"]
    assert {row["name"].partition("@")[0] for row in of_all} == {
        *("accuracy", "recall", "mrr", "ndcg", "hit_rate", "novelty", "popularity_bias", "coverage"),
        *("confidence", "calibration_error"),
    }
    assert all(row["ci_low"] is not None for row in of_all)
    test = chain.warehouse.read(SEQUENCES).where("split = 'test'")
    num_positions = test.agg(F.sum(F.size("tokens") - F.col("first_target"))).first()[0]
    assert {row["num_examples"] for row in of_all if row["name"] == "recall@10"} == {num_positions}


def test_the_slices_of_a_dimension_part_the_positions(chain: Chain) -> None:
    sizes = {
        row["slice"]: row["num_examples"]
        for row in chain.warehouse.read(EVALUATION)
        .where("recommender = 'model' AND against IS NULL AND name = 'recall@10'")
        .collect()
    }
    for begins in ("history_", "gap_", "item_"):
        assert sum(size for name, size in sizes.items() if name.startswith(begins)) == sizes["all"], begins
    assert sizes["first_in_session"] + sizes["within_session"] == sizes["all"]
    assert sum(n for name, n in sizes.items() if name.startswith("session_position_")) == sizes["within_session"]


def test_an_empty_test_window_is_one_line(chain: Chain, copied: Warehouse) -> None:
    keep_of_test(copied, F.lit(False))
    with pytest.raises(DataError, match="the test split has no position to predict"):
        opened(copied, chain)


def test_a_model_of_another_vocabulary_is_refused_naming_both(
    chain: Chain, spark: SparkSession, tmp_path: Path
) -> None:
    other, copy = Warehouse(spark, str(tmp_path / "other")), tmp_path / "copy"
    other.insert_new(VOCABULARY, chain.warehouse.read(VOCABULARY), "item_id")
    shutil.copytree(chain.warehouse.root, copy)
    shutil.rmtree(copy / "tables" / "vocabulary")
    shutil.copytree(other.path(VOCABULARY), copy / "tables" / "vocabulary")
    with pytest.raises(
        DataError, match=r"another vocabulary, v1 of table \w{8} \(60 items\), than .* v1 of table \w{8} \(60"
    ):
        require_testable(Warehouse(spark, str(copy)), champion(chain.warehouse))


@pytest.mark.parametrize(
    ("table", "other"), [(VOCABULARY, "another vocabulary"), (EVENT_TYPES, "another table event_types")]
)
def test_after_tokens_were_removed_and_made_anew_another_model_is_trained(
    chain: Chain, spark: SparkSession, tmp_path: Path, table: Table, other: str
) -> None:
    anew = Warehouse(spark, str(tmp_path / "copy"))
    shutil.copytree(chain.warehouse.root, anew.root)
    for removed in (table, SEQUENCES):
        shutil.rmtree(anew.path(removed))
    run_stage("sequences", anew, chain.config)
    # Their versions are what they were, and so are the settings.
    assert anew.version(table) == chain.warehouse.version(table)
    former = champion(anew)
    with pytest.raises(DataError, match=other):
        require_testable(anew, former)
    assert not run_stage("train", anew, chain.config).nothing_to_do
    assert champion(anew).model_id != former.model_id
    require_testable(anew, champion(anew))
    assert run_stage("train", anew, chain.config).nothing_to_do
    # As maintain leaves it: nothing tells any more which tables the former one was trained on.
    shutil.rmtree(former.path)
    assert run_stage("train", anew, chain.config).nothing_to_do


def test_after_the_sequences_alone_were_removed_and_made_anew_another_model_is_trained(
    chain: Chain, copied: Warehouse
) -> None:
    former = champion(copied)
    assert former.sequences_id == copied.log(SEQUENCES).table_id
    assert former.validation_until is not None
    train_until, validation_until = (
        str(datetime.fromisoformat(former.validation_until) - timedelta(days=days)) for days in (2, 1)
    )
    config = chain.with_settings(
        f"sequences.train_until={train_until}", f"sequences.validation_until={validation_until}"
    )
    shutil.rmtree(copied.path(SEQUENCES))
    run_stage("sequences", copied, config)
    # Its version is what it was, as are those of the token tables, and so are the settings of train and evaluate.
    assert copied.version(SEQUENCES) == chain.warehouse.version(SEQUENCES)
    with pytest.raises(DataError, match=f"begin at {validation_until} and model {former.model_id} has seen events up"):
        run_stage("evaluate", copied, config)
    assert not run_stage("train", copied, config).nothing_to_do
    assert champion(copied).model_id != former.model_id
    assert not run_stage("evaluate", copied, config).nothing_to_do
    for stage in ("train", "evaluate"):
        assert run_stage(stage, copied, config).nothing_to_do


def test_categories_are_those_of_the_attribute_that_the_setting_names(chain: Chain) -> None:
    assert opened(chain.warehouse, chain).rules.items.category_V is None
    categories = opened(chain.warehouse, chain, "evaluate.diversity_attribute=agent").rules.items.category_V
    assert categories is not None
    assert categories[2:].max() > 0
    with pytest.raises(
        UsageError,
        match=r"evaluate.diversity_attribute is 'colour', which is none of ingest.columns.attributes \(agent\)",
    ):
        opened(chain.warehouse, chain, "evaluate.diversity_attribute=colour")
