from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.config import ModelConfig
from llm_spark.errors import DataError, UserError
from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.scoring import recommend, target_ranks
from llm_spark.scoring.offers import Offers
from tests.model.histories import Row, batch_of, random_rows, row
from tests.training.sequences import table_of

NUM_TOKENS, NUM_EVENT_TYPES = 15, 4
LIST_LENGTH = 6


def collect(batches: object) -> list[dict]:
    return [record for batch in batches for record in batch.to_pylist()]


def ranks_of(rows: list[Row], artifact: str, batch_rows: int = 64, max_chunksize: int = 1000) -> list[dict]:
    found = collect(target_ranks(iter(table_of(rows).to_batches(max_chunksize)), artifact, batch_rows, LIST_LENGTH))
    return sorted(found, key=lambda r: (r["sequence_id"], r["position"]))


def lists_of(
    rows: list[Row],
    artifact: str,
    k: int = 5,
    batch_rows: int = 64,
    max_chunksize: int = 1000,
    exclude_seen: bool = False,
) -> list[dict]:
    table = table_of(rows).drop_columns(["sequence_id", "first_target"])
    offers = Offers(k, had_by=None if exclude_seen else frozenset())
    found = collect(recommend(iter(table.to_batches(max_chunksize)), artifact, offers, batch_rows))
    return sorted(found, key=lambda r: (r["user_id"], r["rank"]))


def assert_same_but_for_rounding(left: list[dict], right: list[dict], floats: tuple[str, ...]) -> None:
    for a, b in zip(left, right, strict=True):
        assert {k: v for k, v in a.items() if k not in floats} == {k: v for k, v in b.items() if k not in floats}
        for name in floats:
            assert (a[name] is None) == (b[name] is None)
            assert a[name] is None or math.isclose(a[name], b[name], rel_tol=1e-4, abs_tol=1e-5)


def test_target_ranks_equal_a_brute_force_sort_of_the_models_logits(artifact: str) -> None:
    rows = random_rows(7, NUM_TOKENS, NUM_EVENT_TYPES, seed=3)
    model = load_artifact(artifact).model
    expected = []
    for i, one_row in enumerate(rows):
        contexts, _ = model.forward_states(batch_of([one_row]))
        logits = model.logits(contexts).numpy()
        starts = one_row["session_starts"]
        for n, position in enumerate(range(one_row["first_target"], len(one_row["tokens"]))):
            token = int(one_row["tokens"][position])
            num_as_good = sum(logits[n][other] >= logits[n][token] for other in range(2, NUM_TOKENS))
            probabilities = np.exp(logits[n] - logits[n].max()) / np.exp(logits[n] - logits[n].max()).sum()
            expected.append(
                {
                    "sequence_id": f"s{i}",
                    "user_id": f"u{i}",
                    "position": position,
                    "session_position": position - max(s for s in starts if s <= position),
                    "token": token,
                    "rank": num_as_good if token > 1 else None,
                    "log_prob": math.log(probabilities[token]) if token > 1 else None,
                    "top": sorted(range(2, NUM_TOKENS), key=lambda item: -logits[n][item])[:LIST_LENGTH],
                    "confidence": float(probabilities.max()),
                }
            )
    assert any(e["rank"] is None for e in expected)
    assert_same_but_for_rounding(ranks_of(rows, artifact), expected, ("log_prob", "confidence"))


def test_a_row_that_predicts_nothing_has_no_rank_and_changes_none(artifact: str) -> None:
    rows = random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed=3)
    silent = [{**r, "first_target": len(r["tokens"])} for r in random_rows(4, NUM_TOKENS, NUM_EVENT_TYPES, seed=8)]
    assert ranks_of(silent, artifact) == []
    assert_same_but_for_rounding(
        ranks_of([*rows, *silent], artifact), ranks_of(rows, artifact), ("log_prob", "confidence")
    )


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch_rows=st.integers(1, 20),
    max_chunksize=st.integers(1, 20),
    exclude_seen=st.booleans(),
)
def test_results_do_not_depend_on_partitions_and_batch_sizes(
    artifact: str, seed: int, batch_rows: int, max_chunksize: int, exclude_seen: bool
) -> None:
    rows = random_rows(12, NUM_TOKENS, NUM_EVENT_TYPES, seed)
    assert_same_but_for_rounding(
        ranks_of(rows, artifact, batch_rows, max_chunksize), ranks_of(rows, artifact), ("log_prob", "confidence")
    )
    assert_same_but_for_rounding(
        lists_of(rows, artifact, 5, batch_rows, max_chunksize, exclude_seen),
        lists_of(rows, artifact, exclude_seen=exclude_seen),
        ("score", "probability"),
    )


def test_recommended_items_are_the_models_best_with_their_softmax(artifact: str) -> None:
    rows = random_rows(5, NUM_TOKENS, NUM_EVENT_TYPES, seed=4)
    model = load_artifact(artifact).model
    logits = model.logits(model.next_step(batch_of(rows)))
    found = lists_of(rows, artifact, k=3)
    assert len(found) == 15
    for record in found:
        user = int(record["user_id"][1:])
        order = torch.argsort(logits[user], descending=True)
        assert record["token"] == order[record["rank"] - 1]
        assert record["score"] == pytest.approx(logits[user, record["token"]].item(), rel=1e-4)
        assert record["probability"] == pytest.approx(logits[user].softmax(0)[record["token"]].item(), rel=1e-4)


def test_probabilities_are_softened_by_the_temperature_of_the_artifact_and_scores_are_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"embedding_size": 5, "hidden_size": 6, "dense_size": 7, "memory_size": 4}
    model = NextEventModel(ModelConfig(**sizes), NUM_TOKENS, NUM_EVENT_TYPES)
    lists = {}
    for temperature in (1.0, 2.0):
        folder = str(tmp_path / str(temperature))
        save_manifest(folder, save_content(folder, model, {"temperature": temperature}, {}))
        lists[temperature] = lists_of(random_rows(3, NUM_TOKENS, NUM_EVENT_TYPES, seed=1), folder, k=NUM_TOKENS - 2)
    plain, softened = lists[1.0], lists[2.0]
    assert [(r["token"], r["score"]) for r in plain] == [(r["token"], r["score"]) for r in softened]
    for user in {r["user_id"] for r in plain}:
        square_roots = [math.sqrt(r["probability"]) for r in plain if r["user_id"] == user]
        expected = [root / sum(square_roots) for root in square_roots]
        assert [r["probability"] for r in softened if r["user_id"] == user] == pytest.approx(expected, rel=1e-4)


def test_a_closed_session_is_followed_by_the_next_visits_first_item(artifact: str) -> None:
    history = row([[2, 3, 4], [5, 6]])
    table = table_of([history, history]).append_column("session_open", pa.array([True, False]))
    found = collect(recommend(iter(table.to_batches()), artifact, Offers(14), 8))
    still_open = {r["token"]: r["score"] for r in found if r["user_id"] == "u0"}
    ended = {r["token"]: r["score"] for r in found if r["user_id"] == "u1"}
    model = load_artifact(artifact).model
    followed, _ = model.forward_states(batch_of([row([[2, 3, 4], [5, 6], [7]], first_target=5)]))
    expected = model.logits(followed)[0]
    assert ended == pytest.approx({token: expected[token].item() for token in ended}, rel=1e-4, abs=1e-5)
    assert still_open != pytest.approx(ended, rel=1e-2)


def test_seen_items_are_left_out_and_the_other_probabilities_stay(artifact: str) -> None:
    rows = [row([[2, 3, 4], [5, 1]]), row([[9]])]
    everything = {(r["user_id"], r["token"]): r["probability"] for r in lists_of(rows, artifact, k=13)}
    unseen = {(r["user_id"], r["token"]): r["probability"] for r in lists_of(rows, artifact, k=13, exclude_seen=True)}
    assert set(everything) - set(unseen) == {("u0", 2), ("u0", 3), ("u0", 4), ("u0", 5), ("u1", 9)}
    assert all(everything[key] == pytest.approx(unseen[key]) for key in unseen)


def test_a_user_without_events_and_a_null_list_are_scored_as_newcomers(artifact: str) -> None:
    table = table_of([row([[2, 3]]), row([[4]])])
    lists = ["tokens", "event_types", "values", "session_starts", "event_times"]
    nobody = pa.table(
        {name: pa.array([None], table.schema.field(name).type) for name in lists} | {"user_id": ["nobody"]}
    )
    together = pa.concat_tables(
        [table.drop_columns(["first_target"]), nobody], promote_options="default"
    ).combine_chunks()
    found = collect(recommend(iter(together.to_batches()), artifact, Offers(2), 8))
    assert [r["rank"] for r in found if r["user_id"] == "nobody"] == [1, 2]
    assert len(found) == 6


def test_partitions_without_rows_give_nothing(artifact: str) -> None:
    empty = table_of([]).to_batches() or [pa.RecordBatch.from_pylist([], schema=table_of([]).schema)]
    assert collect(target_ranks(iter([]), artifact, 8, LIST_LENGTH)) == []
    assert collect(target_ranks(iter(empty), artifact, 8, LIST_LENGTH)) == []


def test_a_slice_of_a_larger_arrow_batch_is_scored_as_itself(artifact: str) -> None:
    rows = random_rows(9, NUM_TOKENS, NUM_EVENT_TYPES, seed=8)
    whole = table_of(rows).combine_chunks().to_batches()[0]
    found = collect(target_ranks(iter([whole.slice(3, 4)]), artifact, 64, LIST_LENGTH))
    expected = [r for r in ranks_of(rows, artifact) if r["sequence_id"] in {"s3", "s4", "s5", "s6"}]
    found = sorted(found, key=lambda r: (r["sequence_id"], r["position"]))
    assert_same_but_for_rounding(found, expected, ("log_prob", "confidence"))


def test_where_all_items_tie_the_target_ranks_last_and_the_list_is_in_order_of_tokens(tmp_path: Path) -> None:
    model = NextEventModel(ModelConfig(embedding_size=5, hidden_size=6, dense_size=7), NUM_TOKENS, NUM_EVENT_TYPES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    folder = str(tmp_path / "model")
    save_manifest(folder, save_content(folder, model, {}, {}))
    found = ranks_of([row([[2, 3, 9], [14, 1]])], folder)
    assert [r["rank"] for r in found] == [13, 13, 13, None]
    assert all(r["top"] == [2, 3, 4, 5, 6, 7] for r in found)


def test_a_model_retrained_in_place_is_loaded_anew(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    config = ModelConfig(embedding_size=5, hidden_size=6, dense_size=7, memory_size=4)
    best = []
    for favourite in (5, 6):
        model = NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES)
        with torch.no_grad():
            model.head.bias[favourite] = 50
        save_manifest(folder, save_content(folder, model, {}, {}))
        best.append(lists_of([row([[2, 3]])], folder, k=1)[0]["token"])
    assert best == [5, 6]


def test_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at"):
        ranks_of([row([[2, 3]])], str(tmp_path))


def test_a_missing_column_is_named(artifact: str) -> None:
    table = table_of([row([[2, 3]])]).drop_columns(["session_starts"])
    with pytest.raises(DataError, match="column 'session_starts'"):
        collect(target_ranks(iter(table.to_batches()), artifact, 8, LIST_LENGTH))
