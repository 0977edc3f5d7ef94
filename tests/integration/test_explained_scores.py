"""Reasons in the predictions table, and a model that began at Word2Vec vectors, on the simulated chain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import functions as F

from llm_spark.config import ModelConfig
from llm_spark.model.artifact import load_artifact
from llm_spark.pipelines.initial_embedding import item_vectors
from llm_spark.pipelines.registry.serving import champion
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import PREDICTIONS, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse, sql
from tests.integration.conftest import Chain

NUM_REASONS, NUM_EXPLAINED = 3, 2


def test_explained_predictions_name_past_items_of_their_user_and_the_memorys_share(
    chain: Chain, copied: Warehouse
) -> None:
    asked_for = (f"score.reasons={NUM_REASONS}", f"score.explained={NUM_EXPLAINED}")
    run_stage("score", copied, chain.with_settings(*asked_for))
    plain = {
        (row["user_id"], row["rank"]): row
        for row in chain.warehouse.read(PREDICTIONS).where("source = 'model'").collect()
    }
    past = {
        row["user_id"]: set(row["items"])
        for row in copied.read(SESSIONS)
        .groupBy("user_id")
        .agg(F.array_distinct(F.flatten(F.collect_list("item_ids"))).alias("items"))
        .collect()
    }
    rows = copied.read(PREDICTIONS).where("source = 'model'").collect()
    assert {(row["user_id"], row["rank"]): row["item_id"] for row in rows} == {
        key: row["item_id"] for key, row in plain.items()
    }
    assert {row["reasons"] for row in plain.values()} == {None}
    explained = [row for row in rows if row["rank"] <= NUM_EXPLAINED]
    assert {(row["reasons"], row["memory_weight"]) for row in rows if row["rank"] > NUM_EXPLAINED} == {(None, None)}
    assert max(len(row["reasons"]) for row in explained) == NUM_REASONS
    for row in explained:
        assert len(row["reasons"]) <= NUM_REASONS
        assert {reason["item_id"] for reason in row["reasons"]} <= past[row["user_id"]]
        weights = [reason["weight"] for reason in row["reasons"]]
        assert weights == sorted(weights, reverse=True)
        assert all(weight > 0 for weight in weights)
        assert row["memory_weight"] is not None
    (told,) = sql(
        copied, "SELECT count(*) FROM predictions LATERAL VIEW explode(reasons) AS reason WHERE reason.weight > 0"
    ).collect()
    assert told[0] == sum(len(row["reasons"]) for row in explained)


def test_other_reasons_asked_for_are_scored_again_and_the_same_are_not(chain: Chain, copied: Warehouse) -> None:
    first = run_stage("score", copied, chain.with_settings("score.reasons=1"))
    again = run_stage("score", copied, chain.with_settings("score.reasons=1"))
    assert not first.nothing_to_do
    assert again.nothing_to_do


def test_item_vectors_are_those_of_the_training_splits_items_and_the_same_each_time(chain: Chain) -> None:
    training_sequences = chain.warehouse.read(SEQUENCES).where("split = 'train'")
    settings = ModelConfig(embedding_size=8, word2vec_size=12)
    tokens, vectors = item_vectors(training_sequences, settings, seed=3)
    again, same_vectors = item_vectors(training_sequences, settings, seed=3)
    known = {row["token"] for row in chain.warehouse.read(VOCABULARY).collect()}
    assert set(tokens.tolist()) <= known
    assert len(tokens) > len(known) / 2
    assert vectors.shape == (len(tokens), 8)
    assert np.sqrt(np.mean(vectors**2)) == pytest.approx(8**-0.5)
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(vectors, same_vectors)


def test_a_model_that_begins_at_word2vec_is_another_model_and_leaves_no_file_behind(
    chain: Chain, copied: Warehouse
) -> None:
    before = champion(copied).model_id
    settings = ("model.initial_embedding=word2vec", "model.word2vec_size=24", "train.num_epochs=1")
    run_stage("train", copied, chain.with_settings(*settings))
    trained = champion(copied)
    assert trained.model_id != before
    assert load_artifact(trained.path).model.config.initial_embedding == "word2vec"
    staging = Path(copied.root) / "staging"
    assert not list(staging.glob("item-vectors-*"))
