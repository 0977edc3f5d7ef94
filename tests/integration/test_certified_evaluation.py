"""Nothing is evaluated without a certificate of exactly its sequences, nor on what the model has seen."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F

from llm_spark.errors import DataError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.certificate import certify
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import DATA_QUALITY, EVALUATION, SEQUENCES, SESSIONS
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.certificate import LAWS
from tests.integration.conftest import Chain


def tampered(warehouse: Warehouse) -> None:
    """Let every training row end with an event of the far future, under the note of the honest rows."""
    note = warehouse.origin(SEQUENCES)
    assert note is not None
    later = F.transform(
        "event_times", lambda time, place: time + F.when(place == F.size("event_times") - 1, 10**9).otherwise(0)
    )
    changed = F.when(F.col("split") == "train", later).otherwise(F.col("event_times"))
    rows = warehouse.read(SEQUENCES).withColumn("event_times", changed).localCheckpoint()
    warehouse.replace(SEQUENCES, rows, note)


def test_the_stage_leaves_a_certificate_of_each_law_bound_to_the_version(chain: Chain) -> None:
    subject = f"sequences v{chain.warehouse.data_version(SEQUENCES)}"
    rows = chain.warehouse.read(DATA_QUALITY).where((F.col("subject") == subject) & F.col("name").isin(list(LAWS)))
    assert {(row["name"], row["value"], row["limit"], row["severity"]) for row in rows.collect()} == {
        (name, 0.0, 0.0, "info") for name in LAWS
    }


def test_sequences_that_were_tampered_with_are_refused_and_made_anew_by_their_stage(
    chain: Chain, copied: Warehouse
) -> None:
    tampered(copied)
    with pytest.raises(DataError, match=r"sequences v\d+ have no certificate: run `llm-spark sequences`"):
        run_stage("evaluate", copied, chain.config)
    account = Account("sequences")
    what_to_do = r"training_precedes_evaluation \(\d+ .*, such as in row '\w+'\).*a fault of the program, or a table was changed by hand"
    with pytest.raises(DataError, match=what_to_do):
        certify(copied, copied.read(SESSIONS), account)
    account.record_checks(copied)
    recorded = copied.read(DATA_QUALITY).where((F.col("run_id") == account.run_id) & (F.col("severity") == "error"))
    assert "training_precedes_evaluation" in {row["name"] for row in recorded.collect()}
    with pytest.raises(DataError, match=r"does not hold \(training_precedes_evaluation"):
        run_stage("evaluate", copied, chain.config)
    assert not run_stage("sequences", copied, chain.config).nothing_to_do
    assert not run_stage("evaluate", copied, chain.config).nothing_to_do


def test_sequences_that_were_held_against_fewer_laws_are_certified_as_they_are(chain: Chain, copied: Warehouse) -> None:
    copied.delete(DATA_QUALITY, F.col("name").isin("contents_are_the_events", "labels_close_in_their_split"))
    version = copied.version(SEQUENCES)
    config = chain.with_settings("evaluate.baselines=[popularity]")
    with pytest.raises(DataError, match="never held against contents_are_the_events, labels_close_in_their_split"):
        run_stage("evaluate", copied, config)
    assert not run_stage("sequences", copied, config).nothing_to_do
    assert run_stage("sequences", copied, config).nothing_to_do
    assert copied.version(SEQUENCES) == version


def test_where_the_last_session_is_left_out_only_the_model_of_these_very_sequences_is_tested(
    chain: Chain, copied: Warehouse
) -> None:
    config = chain.with_settings(
        "sequences.split=leave_last_session_out", "train.num_epochs=1", "evaluate.baselines=[popularity]"
    )
    run_stage("sequences", copied, config)
    with pytest.raises(
        DataError, match=r"split by leave_last_session_out, and model .* split by time: run `llm-spark train`"
    ):
        run_stage("evaluate", copied, config)
    run_stage("train", copied, config)
    run_stage("evaluate", copied, config)
    test_users = copied.read(SEQUENCES).where("split = 'test'").select("user_id").distinct().count()
    users_of_three = copied.read(SESSIONS).groupBy("user_id").count().where("count >= 3").count()
    assert test_users == users_of_three
    positions = copied.read(EVALUATION).where(
        "name = 'recall@10' AND slice = 'all' AND recommender = 'model' AND against IS NULL"
    )
    assert positions.orderBy(F.desc("sequences_version")).first()["sequences_version"] == copied.version(SEQUENCES)
    run_stage("sequences", copied, chain.with_settings())
    with pytest.raises(DataError, match="split by time, and model"):
        run_stage("evaluate", copied, chain.with_settings())
