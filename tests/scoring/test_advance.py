"""A user's state, carried from night to night: any split of the history into nights gives what one replay gives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.config import ModelConfig
from llm_spark.errors import UserError
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.scoring import advance, kernels, recommend
from llm_spark.scoring.offers import Offers
from llm_spark.scoring.states import STATE_SCHEMA
from tests.model.histories import Row, random_rows, with_features
from tests.scoring.conftest import NUM_EVENT_TYPES, NUM_TOKENS
from tests.training.sequences import table_of

K = 6
FOLDED = ("memory", "past", "earlier_tokens", "earlier_event_types", "model_id")


@pytest.fixture(scope="module", params=["gru", "lstm-features", "no-memory"])
def artifact_and_features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    torch.manual_seed(1)
    sizes = {"embedding_size": 5, "hidden_size": 6, "dense_size": 7, "memory_size": 4}
    kinds = {"gru": {}, "lstm-features": {"cell": "lstm", "features": ["price"]}, "no-memory": {"memory_size": 0}}
    model = NextEventModel(ModelConfig(**{**sizes, **kinds[request.param]}), NUM_TOKENS, NUM_EVENT_TYPES)
    with torch.no_grad():
        model.head.weight.mul_(5)
        if model.memory_cell is not None:
            model.memory_cell.newcomer_M.normal_()
    folder = str(tmp_path_factory.mktemp("advance") / "model")
    save_manifest(folder, save_content(folder, model, {}, {}))
    return folder, len(model.config.features)


def sessions_named(rows: list[Row], names: list[list[str]] | None = None) -> pa.Table:
    """The rows as they go in: their sessions named and ended."""
    table = table_of(rows).drop_columns(["sequence_id", "first_target"])
    names = names or [[f"s{place}" for place in range(len(r["session_starts"]))] for r in rows]
    ends = [
        [r["event_times"][end - 1] * 1_000_000 for end in [*r["session_starts"][1:], len(r["tokens"])]] for r in rows
    ]
    table = table.append_column("session_ids", pa.array(names, pa.list_(pa.string())))
    return table.append_column("sessions_ended_at", pa.array(ends, pa.list_(pa.timestamp("us", tz="UTC"))))


class Night:
    """What a run of the kernel gave."""

    def __init__(
        self, table: pa.Table, artifact: str, batch_rows: int = 64, max_chunksize: int = 1000, **asked: object
    ):
        defaults = {"offers": Offers(K, had_by=None), "max_tokens": 9, "fills_from_the_past": False}
        batches: Iterator[pa.RecordBatch] = iter(table.to_batches(max_chunksize))
        found = advance(batches, artifact, "m1", batch_rows=batch_rows, **{**defaults, **asked})
        records = [record for batch in found for record in batch.to_pylist()]
        self.lists = sorted((r for r in records if r["rank"]), key=lambda r: (r["user_id"], r["rank"]))
        self.states = {r["user_id"]: r for r in records if r["rank"] is None}


def next_night(night: Night, rows: list[Row], until: list[int], artifact: str, **asked: object) -> Night:
    """The users' states and the sessions that came or grew since; `until` is how many events of each row have come by now."""
    tails, names, kept = [], [], {name: [] for name in FOLDED}
    for i, (one_row, end) in enumerate(zip(rows, until, strict=True)):
        state = night.states.get(f"u{i}")
        folded = (state["past"] or {"num_events": 0, "num_sessions": 0}) if state else None
        begin, first = (folded["num_events"], folded["num_sessions"]) if folded else (0, 0)
        by_event = ("tokens", "event_types", "values", "event_times", "features")
        tail = {name: column[begin:end] for name, column in one_row.items() if name in by_event}
        if state:
            # What was kept stands in the state as it was filled then, but for a last session that has grown.
            num_kept = len(state["tokens"])
            kept_values = [math.nan if value is None else value for value in state["values"]]
            tail["values"] = [*kept_values, *tail["values"][num_kept:]][: end - begin]
        starts = [start - begin for start in one_row["session_starts"] if begin <= start < end]
        tails.append({**tail, "session_starts": starts, "first_target": 1})
        names.append([f"s{first + place}" for place in range(len(starts))])
        for name in FOLDED:
            kept[name].append(("m1" if name == "model_id" else state[name]) if state else None)
    table = sessions_named(tails, names)
    kinds = {field.name: field.type for field in STATE_SCHEMA} | {"model_id": pa.string()}
    for name in FOLDED:
        table = table.append_column(name, pa.array(kept[name], kinds[name]))
    return Night(table, artifact, **asked)


def assert_same(left: Night, right: Night) -> None:
    assert [(r["user_id"], r["rank"], r["token"]) for r in left.lists] == [
        (r["user_id"], r["rank"], r["token"]) for r in right.lists
    ]
    for a, b in zip(left.lists, right.lists, strict=True):
        for name in ("score", "probability", "memory_weight"):
            assert (a[name] is None) == (b[name] is None)
            assert a[name] is None or math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=1e-5)
        assert (a["reasons"] is None) == (b["reasons"] is None)
        for one, other in zip(a["reasons"] or [], b["reasons"] or [], strict=True):
            assert one["token"] == other["token"]
            assert math.isclose(one["weight"], other["weight"], rel_tol=1e-4, abs_tol=1e-5)
    assert left.states.keys() == right.states.keys()
    for user, state in left.states.items():
        other = right.states[user]
        memory, expected = (np.frombuffer(s["memory"], "<f4") for s in (state, other))
        np.testing.assert_allclose(memory, expected, atol=1e-5)
        exact = [name for name in STATE_SCHEMA.names if name not in ("memory", "past")]
        assert {name: state[name] for name in exact} == {name: other[name] for name in exact}
        assert (state["past"] is None) == (other["past"] is None)
        if state["past"]:
            assert state["past"].pop("value_sum") == pytest.approx(other["past"].pop("value_sum"))
            assert state["past"] == other["past"]


@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), num_reasons=st.sampled_from([0, 2]))
def test_any_split_into_nights_gives_the_lists_and_the_states_of_one_replay(
    artifact_and_features: tuple[str, int], data: st.DataObject, seed: int, num_reasons: int
) -> None:
    artifact, num_features = artifact_and_features
    rows = random_rows(8, NUM_TOKENS, NUM_EVENT_TYPES, seed, max_sessions=6, max_length=5)
    if num_features:
        rows = with_features(rows, num_features, seed)
    asked = {"num_reasons": num_reasons, "num_explained": 2}
    lengths = [len(one_row["tokens"]) for one_row in rows]
    nights = [[data.draw(st.integers(1, length)) for length in lengths] for _ in range(data.draw(st.integers(0, 3)))]
    so_far, night = [0] * len(rows), Night(sessions_named([]), artifact)
    for until in [*nights, lengths]:
        so_far = [max(a, b) for a, b in zip(so_far, until, strict=True)]
        night = next_night(night, rows, so_far, artifact, **asked)
    assert_same(night, Night(sessions_named(rows), artifact, **asked))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), batch_rows=st.integers(1, 20), max_chunksize=st.integers(1, 20))
def test_lists_and_states_do_not_depend_on_partitions_and_batch_sizes(
    artifact: str, seed: int, batch_rows: int, max_chunksize: int
) -> None:
    table = sessions_named(random_rows(12, NUM_TOKENS, NUM_EVENT_TYPES, seed))
    assert_same(Night(table, artifact, batch_rows, max_chunksize), Night(table, artifact))


def test_lists_are_those_of_the_whole_histories_walked_in_one_go(artifact: str) -> None:
    rows = random_rows(30, NUM_TOKENS, NUM_EVENT_TYPES, seed=5, max_sessions=8)
    table = sessions_named(rows).append_column("session_open", pa.array([i % 2 == 0 for i in range(30)]))
    night = Night(table, artifact, offers=Offers(K))
    batches = recommend(iter(table.to_batches()), artifact, Offers(K), 64)
    expected = sorted((r for b in batches for r in b.to_pylist()), key=lambda r: (r["user_id"], r["rank"]))
    assert [(r["user_id"], r["token"]) for r in night.lists] == [(r["user_id"], r["token"]) for r in expected]
    assert [r["score"] for r in night.lists] == pytest.approx([r["score"] for r in expected], abs=1e-5)


def test_the_window_is_the_last_session_or_as_many_whole_ones_as_fit_where_reasons_are_asked_for(artifact: str) -> None:
    one_row = random_rows(1, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)[0]
    one_row |= {"tokens": list(range(2, 14)), "session_starts": [0, 4, 9], "event_times": list(range(12))}
    one_row |= {"event_types": [2] * 12, "values": [float(i) for i in range(12)]}
    table = sessions_named([one_row])
    last = Night(table, artifact, max_tokens=8).states["u0"]
    assert (last["tokens"], last["session_ids"], last["session_starts"]) == ([11, 12, 13], ["s2"], [0])
    assert (last["earlier_tokens"], last["past"]["num_events"]) == ([6, 7, 8, 9, 10], 9)
    two = Night(table, artifact, max_tokens=8, num_reasons=1).states["u0"]
    assert (two["session_ids"], two["session_starts"], two["earlier_tokens"]) == (["s1", "s2"], [0, 5], [])
    # By hand: the first session's values are 0 to 3, its last event came at second 3.
    past = two["past"]
    assert (past["num_sessions"], past["num_events"], past["value_sum"], past["last_value"]) == (1, 4, 6.0, 3.0)
    assert (past["first_event_time"], past["previous_event_time"], past["latest_event_time"]) == (0, 3, 3)
    assert past["session_id"] == "s0"
    assert Night(table, artifact, max_tokens=2, num_reasons=1).states["u0"]["session_ids"] == ["s2"]


def test_items_of_the_newest_events_are_left_out_also_where_they_were_folded_nights_ago(artifact: str) -> None:
    one_row = random_rows(1, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)[0]
    one_row |= {"tokens": list(range(2, 8)), "session_starts": [0, 2, 4], "event_times": list(range(6))}
    one_row |= {"event_types": [2] * 6, "values": [1.0] * 6}
    night = Night(sessions_named([]), artifact)
    for until in (2, 4, 6):
        night = next_night(night, [one_row], [until], artifact, max_tokens=4)
    listed = {r["token"] for r in night.lists}
    assert not listed & {4, 5, 6, 7}
    everything = Night(sessions_named([one_row]), artifact, max_tokens=1)
    assert len(listed) == K
    assert everything.states["u0"]["earlier_tokens"] == []


def test_a_missing_value_is_the_last_one_known_before_the_kept_steps(artifact: str) -> None:
    one_row = random_rows(1, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)[0]
    one_row |= {"tokens": [2, 3, 4, 5, 6], "session_starts": [0, 2, 3], "event_times": [0, 1, 2, 3, 4]}
    one_row |= {"event_types": [2] * 5, "values": [math.nan, 7.5, math.nan, math.nan, 9.0]}
    forward = {**one_row, "values": [math.nan, 7.5, 7.5, 7.5, 9.0]}
    night = Night(sessions_named([]), artifact)
    for until in (2, 3, 4, 5):
        night = next_night(night, [one_row], [until], artifact, fills_from_the_past=True)
    assert night.states["u0"]["values"] == [7.5, 9.0]
    assert_same(night, Night(sessions_named([forward]), artifact, fills_from_the_past=True))


def test_the_state_of_another_model_is_refused(artifact: str) -> None:
    rows = random_rows(2, NUM_TOKENS, NUM_EVENT_TYPES, seed=1)
    states = {"memory": [b"\0" * 16] * 2, "model_id": ["m1", "an older one"]}
    table = sessions_named(rows)
    for name in FOLDED:
        kind = {f.name: f.type for f in STATE_SCHEMA}.get(name, pa.string())
        table = table.append_column(name, pa.array(states.get(name, [None] * 2), kind))
    with pytest.raises(UserError, match="an older one where m1 scores"):
        Night(table, artifact)


def test_a_worker_loads_the_model_once(artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = kernels.load_artifact
    monkeypatch.setattr(kernels, "load_artifact", lambda path: loads.append(path) or load(path))
    kernels._loaded.clear()
    table = sessions_named(random_rows(9, NUM_TOKENS, NUM_EVENT_TYPES, seed=1))
    for _ in range(2):
        Night(table, artifact, batch_rows=2, max_chunksize=3)
    assert loads == [artifact]
