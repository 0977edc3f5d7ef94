"""The outcome kernel against the model asked one user at a time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.errors import DataError, UserError
from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.scoring import foretell
from tests.model.histories import Row, batch_of, random_rows, row, with_features
from tests.training.sequences import table_of

NUM_TOKENS, NUM_EVENT_TYPES = 15, 4
OUTCOMES = [OutcomeConfig("returns"), OutcomeConfig("spend", kind="amount")]


def saved(folder: str, outcomes: list[OutcomeConfig]) -> str:
    torch.manual_seed(0)
    sizes = {"embedding_size": 5, "hidden_size": 6, "dense_size": 7, "memory_size": 4}
    config = ModelConfig(**sizes, features=["quantity"], outcomes=outcomes)
    model = NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES)
    save_manifest(folder, save_content(folder, model, {}, {}))
    return folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(str(tmp_path_factory.mktemp("outcomes") / "model"), OUTCOMES)


def answers(rows: list[Row], artifact: str, batch_rows: int = 64, chunk: int = 1000, waited: int | None = None) -> dict:
    """(user, outcome) -> value; asked `waited` seconds after each row's latest event."""
    table = table_of(rows)
    if waited is not None:
        asked_at = [max(one_row["event_times"]) + waited for one_row in rows]
        table = table.append_column("asked_at", pa.array(asked_at, pa.int64()))
    made = foretell(iter(table.to_batches(chunk)), artifact, batch_rows)
    return {(r["user_id"], r["outcome"]): r["value"] for batch in made for r in batch.to_pylist()}


def histories(num_rows: int, seed: int) -> list[Row]:
    return with_features(random_rows(num_rows, NUM_TOKENS, NUM_EVENT_TYPES, seed), 1, seed)


@pytest.mark.parametrize("waited", [None, 0, 3_000_000])
def test_each_user_is_answered_as_the_model_answers_alone(artifact: str, waited: int | None) -> None:
    rows = histories(7, seed=1)
    model = load_artifact(artifact).model
    expected = {}
    for i, one_row in enumerate(rows):
        returns, spend = model.outcomes(batch_of([one_row]), torch.tensor([float(waited or 0)]))[0].tolist()
        expected |= {(f"u{i}", "returns"): returns, (f"u{i}", "spend"): spend}
    found = answers(rows, artifact, waited=waited)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(0 < value < 1 for (_, name), value in found.items() if name == "returns")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), batch_rows=st.integers(1, 12), chunk=st.integers(1, 12))
def test_answers_do_not_depend_on_partitions_and_batch_sizes(
    artifact: str, seed: int, batch_rows: int, chunk: int
) -> None:
    rows = histories(9, seed)
    found = answers(rows, artifact, batch_rows, chunk, waited=1000)
    assert found == pytest.approx(answers(rows, artifact, waited=1000), rel=1e-4, abs=1e-6)


def test_the_latest_event_counts_where_a_history_is_not_in_order_of_time(artifact: str) -> None:
    (overlapping,) = with_features([row([[2, 3], [4]])], 1, seed=1)
    overlapping["event_times"] = [100, 900, 300]
    model = load_artifact(artifact).model
    expected = model.outcomes(batch_of([overlapping]), torch.tensor([50.0]))[0, 0].item()
    assert answers([overlapping], artifact, waited=50)["u0", "returns"] == pytest.approx(expected, rel=1e-5)


def test_a_user_without_events_is_answered_by_null(artifact: str) -> None:
    nobody: Row = {
        name: [] for name in ("tokens", "event_types", "values", "event_times", "session_starts", "features")
    }
    (somebody,) = with_features([row([[2, 3]])], 1, seed=1)
    found = answers([{**nobody, "first_target": 1}, somebody], artifact)
    assert found["u0", "returns"] is None
    assert found["u1", "returns"] is not None


def test_features_that_are_missing_from_the_input_are_named(artifact: str) -> None:
    table = table_of(histories(2, seed=1)).drop_columns(["features"])
    with pytest.raises(DataError, match="column 'features'"):
        list(foretell(iter(table.to_batches()), artifact, 8))


def test_a_model_that_foretells_nothing_says_what_to_do(tmp_path: Path) -> None:
    folder = saved(str(tmp_path / "model"), [])
    with pytest.raises(UserError, match=r"foretells no outcome: give model\.outcomes and train it again"):
        list(foretell(iter([]), folder, 8))
