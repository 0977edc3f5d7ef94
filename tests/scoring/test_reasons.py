from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.explain import explain
from llm_spark.model.network import NextEventModel
from llm_spark.scoring import recommend
from llm_spark.scoring.offers import Offers
from llm_spark.scoring.reasons import MIN_WEIGHT
from tests.model.histories import Row, batch_of, random_rows, row
from tests.training.sequences import table_of

NUM_TOKENS, NUM_EVENT_TYPES = 15, 4
K = 4


def lists_of(
    rows: list[Row],
    artifact: str,
    num_reasons: int,
    batch_rows: int = 64,
    max_chunksize: int = 1000,
    num_explained: int = K,
) -> list[dict]:
    table = table_of(rows).drop_columns(["sequence_id", "first_target"])
    batches = recommend(
        iter(table.to_batches(max_chunksize)), artifact, Offers(K), batch_rows, num_reasons, num_explained
    )
    found = [record for batch in batches for record in batch.to_pylist()]
    return sorted(found, key=lambda r: (r["user_id"], r["rank"]))


def test_reasons_are_the_past_items_that_added_most_to_the_score(artifact: str) -> None:
    rows = random_rows(8, NUM_TOKENS, NUM_EVENT_TYPES, seed=4)
    model = load_artifact(artifact).model
    found = lists_of(rows, artifact, 3)
    for record in found:
        one_row = rows[int(record["user_id"][1:])]
        batch = batch_of([one_row])
        told = explain(model, batch, model.next_step(batch), torch.tensor([[record["token"]]]))
        weight_of: dict[int, float] = {}
        for token, weight in zip(one_row["tokens"], told.weight_NK[:, 0].tolist(), strict=True):
            weight_of[int(token)] = weight_of.get(int(token), 0.0) + weight
        best = sorted(
            ((weight, token) for token, weight in weight_of.items() if weight > MIN_WEIGHT and token > 1), reverse=True
        )[:3]
        assert [reason["token"] for reason in record["reasons"]] == [token for _, token in best]
        assert [reason["weight"] for reason in record["reasons"]] == pytest.approx([w for w, _ in best], abs=1e-4)
        assert record["memory_weight"] == pytest.approx(told.memory_BK[0, 0].item(), abs=1e-4)
    assert {len(record["reasons"]) for record in found} >= {2, 3}
    assert any(1 in one_row["tokens"] for one_row in rows)


def test_events_of_one_item_count_together(artifact: str) -> None:
    for record in lists_of([row([[3, 4, 3, 4, 3]])], artifact, 5):
        tokens = [reason["token"] for reason in record["reasons"]]
        assert set(tokens) <= {3, 4}
        assert len(tokens) == len(set(tokens))


def test_an_item_that_the_model_does_not_know_is_never_a_reason(artifact: str) -> None:
    found = lists_of([row([[1, NUM_TOKENS + 3, 1]])], artifact, 3)
    assert [record["reasons"] for record in found] == [[]] * 4


def test_without_reasons_asked_for_there_are_none_and_the_lists_are_the_same(artifact: str) -> None:
    rows = random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=5)
    without, with_some = lists_of(rows, artifact, 0), lists_of(rows, artifact, 2)
    assert {(record["reasons"], record["memory_weight"]) for record in without} == {(None, None)}
    plain = ("user_id", "rank", "token", "score", "probability")
    assert [[r[name] for name in plain] for r in without] == [[r[name] for name in plain] for r in with_some]


def test_a_user_without_events_gets_no_reasons(artifact: str) -> None:
    table = table_of([row([[2, 3]])])
    lists = ["tokens", "event_types", "values", "session_starts", "event_times"]
    nobody = pa.table(
        {name: pa.array([None], table.schema.field(name).type) for name in lists} | {"user_id": ["nobody"]}
    )
    together = pa.concat_tables(
        [table.drop_columns(["first_target"]), nobody], promote_options="default"
    ).combine_chunks()
    for inputs in (together, nobody):
        batches = recommend(iter(inputs.to_batches()), artifact, Offers(2), 8, 3, 2)
        found = [record for batch in batches for record in batch.to_pylist() if record["user_id"] == "nobody"]
        assert [(record["reasons"], record["memory_weight"]) for record in found] == [([], 0.0)] * 2


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), batch_rows=st.integers(1, 20), max_chunksize=st.integers(1, 20))
def test_reasons_do_not_depend_on_partitions_and_batch_sizes(
    artifact: str, seed: int, batch_rows: int, max_chunksize: int
) -> None:
    rows = random_rows(12, NUM_TOKENS, NUM_EVENT_TYPES, seed)
    alone, cut = lists_of(rows, artifact, 20), lists_of(rows, artifact, 20, batch_rows, max_chunksize)
    for left, right in zip(alone, cut, strict=True):
        weights = [{r["token"]: r["weight"] for r in record["reasons"]} for record in (left, right)]
        # What lies at the threshold of a reason may fall to either side by rounding.
        clear = [{t for t, weight in one.items() if weight > MIN_WEIGHT + 1e-4} for one in weights]
        assert clear[0] <= set(weights[1])
        assert clear[1] <= set(weights[0])
        assert all(weights[0][t] == pytest.approx(weights[1][t], abs=1e-4) for t in clear[0])
        assert left["memory_weight"] == pytest.approx(right["memory_weight"], abs=1e-4)


def test_only_the_first_of_each_list_are_explained(artifact: str) -> None:
    rows = random_rows(6, NUM_TOKENS, NUM_EVENT_TYPES, seed=7)
    all_of_them, first_two = lists_of(rows, artifact, 3), lists_of(rows, artifact, 3, num_explained=2)
    for whole, part in zip(all_of_them, first_two, strict=True):
        if part["rank"] > 2:
            assert (part["reasons"], part["memory_weight"]) == (None, None)
        else:
            assert [r["token"] for r in part["reasons"]] == [r["token"] for r in whole["reasons"]]
            assert part["memory_weight"] == pytest.approx(whole["memory_weight"], abs=1e-5)


def test_scores_that_the_past_does_not_move_have_no_reasons(artifact: str, tmp_path: Path) -> None:
    # A head that looks at nothing: every item's score is its bias, so nothing past is a reason.
    model = NextEventModel(load_artifact(artifact).model.config, NUM_TOKENS, NUM_EVENT_TYPES)
    with torch.no_grad():
        model.head.weight.zero_()
    folder = str(tmp_path / "model")
    save_manifest(folder, save_content(folder, model, {}, {}))
    for record in lists_of(random_rows(4, NUM_TOKENS, NUM_EVENT_TYPES, seed=1), folder, 3):
        assert record["reasons"] == []
        assert record["memory_weight"] == pytest.approx(0.0, abs=1e-5)
