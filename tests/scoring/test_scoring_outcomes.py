"""The outcome kernel against the model asked one user at a time."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.errors import DataError, UserError
from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.explain import explain_outcomes
from llm_spark.model.network import NextEventModel
from llm_spark.scoring import foretell, labelled_moments
from llm_spark.scoring.reasons import MIN_WEIGHT
from tests.model.histories import Row, batch_of, prefix, random_rows, row, with_features, with_moments
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


def asked(rows: list[Row], artifact: str, foretold: bool = True, batch_rows: int = 64, chunk: int = 1000) -> list[dict]:
    made = labelled_moments(iter(table_of(rows).to_batches(chunk)), artifact, batch_rows, foretold)
    return sorted((r for batch in made for r in batch.to_pylist()), key=lambda r: str((r["user_id"], r["outcome"], r)))


def test_each_moment_is_answered_as_its_prefix_alone_and_those_without_a_label_are_left_out(artifact: str) -> None:
    rows = with_moments(histories(6, seed=3), 2, seed=4)
    model = load_artifact(artifact).model
    expected = []
    for user, one_row in enumerate(rows):
        moments = zip(
            one_row["outcome_places"], one_row["outcome_elapsed_seconds"], one_row["outcome_labels"], strict=True
        )
        for place, elapsed, labels in moments:
            told = model.outcomes(batch_of([prefix(one_row, place + 1)]), torch.tensor([float(elapsed)]))[0].tolist()
            for outcome, label, value in zip(("returns", "spend"), labels, told, strict=True):
                if not math.isnan(label):
                    expected.append((f"u{user}", outcome, label, value))
    found = []
    for r in asked(rows, artifact):
        is_amount = r["outcome"] == "spend"
        value = math.expm1(max(0.0, r["prediction"])) if is_amount else 1 / (1 + math.exp(-r["prediction"]))
        found.append((r["user_id"], r["outcome"], r["label"], value))
    assert len(found) == len(expected) > 10
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert one == (*other[:2], pytest.approx(other[2], rel=1e-6), pytest.approx(other[3], rel=1e-4, abs=1e-6))


def test_moments_do_not_depend_on_batches_and_are_told_without_the_model_where_nothing_is_foretold(
    artifact: str,
) -> None:
    rows = with_moments(histories(9, seed=5), 2, seed=6)
    whole = asked(rows, artifact, foretold=False)
    assert {r["prediction"] for r in whole} == {None}
    assert asked(rows, artifact, foretold=False, batch_rows=2, chunk=3) == whole
    kept = ("user_id", "outcome", "label", "frequency", "tenure", "monetary", "recency")
    by_model = asked(rows, artifact)
    assert sorted(str([r[k] for k in kept]) for r in by_model) == sorted(str([r[k] for k in kept]) for r in whole)


def test_the_numbers_of_a_moment_by_hand(artifact: str) -> None:
    (visits,) = with_features([row([[2, 3], [4]])], 1, seed=1)
    visits |= {"event_times": [100, 160, 1100], "values": [5.0, float("nan"), 7.0]}
    visits |= {"outcome_places": [1, 2], "outcome_elapsed_seconds": [40, 0]}
    visits["outcome_labels"] = [[1.0, float("nan")], [0.0, float("nan")]]
    found = [[r[name] for name in ("frequency", "tenure", "monetary", "recency")] for r in asked([visits], artifact)]
    # After the second event one visit, sixty seconds, 5 spent, forty seconds ago; after the third two, 1,000, 12, just now.
    first, second = [math.log1p(x) for x in (1, 60, 5, 40)], [math.log1p(x) for x in (2, 1000, 12, 0)]
    assert sorted(found) == [pytest.approx(first, rel=1e-6), pytest.approx(second, rel=1e-6)]


def test_damaged_moments_are_named(artifact: str) -> None:
    (one_row,) = with_moments(histories(1, seed=1), 2, seed=2)
    one_row |= {"outcome_places": [99], "outcome_elapsed_seconds": [0], "outcome_labels": [[1.0, 1.0]]}
    with pytest.raises(DataError, match="outcome_places names a position outside its row"):
        asked([one_row], artifact)


def test_reasons_of_an_outcome_are_the_past_items_that_raised_it_most(artifact: str) -> None:
    rows = histories(6, seed=7)
    (unknown,) = with_features([row([[1, NUM_TOKENS + 2]])], 1, seed=2)
    rows.append(unknown)
    model = load_artifact(artifact).model
    found = foretell(iter(table_of(rows).to_batches()), artifact, 3, num_reasons=2)
    reasons = {(r["user_id"], r["outcome"]): r["reasons"] for batch in found for r in batch.to_pylist()}
    for i, one_row in enumerate(rows):
        told = explain_outcomes(model, batch_of([one_row]), torch.zeros(1))
        for place, outcome in enumerate(("returns", "spend")):
            weight_of: dict[int, float] = {}
            for token, weight in zip(one_row["tokens"], told.weight_NK[:, place].tolist(), strict=True):
                weight_of[int(token)] = weight_of.get(int(token), 0.0) + weight
            best = sorted((-w, t) for t, w in weight_of.items() if w > MIN_WEIGHT and 1 < t < NUM_TOKENS)[:2]
            mine = reasons[f"u{i}", outcome]
            assert [reason["token"] for reason in mine] == [token for _, token in best]
            assert [reason["weight"] for reason in mine] == pytest.approx([-w for w, _ in best], abs=1e-4)
    assert reasons["u6", "returns"] == []
    assert any(len(told) == 2 for told in reasons.values())


def test_without_reasons_asked_for_an_outcome_has_none(artifact: str) -> None:
    (batch,) = foretell(iter(table_of(histories(2, seed=7)).to_batches()), artifact, 8)
    assert batch.column("reasons").null_count == 4


def test_reasons_leave_what_is_foretold_as_it_is_also_beside_a_user_without_events(artifact: str) -> None:
    nobody: Row = {
        name: [] for name in ("tokens", "event_types", "values", "event_times", "session_starts", "features")
    }
    rows = [{**nobody, "first_target": 1}, *histories(4, seed=8)]

    def told(num_reasons: int) -> list[tuple]:
        made = foretell(iter(table_of(rows).to_batches()), artifact, 8, num_reasons)
        return [(r["user_id"], r["outcome"], r["value"]) for batch in made for r in batch.to_pylist()]

    assert told(3) == told(0)
