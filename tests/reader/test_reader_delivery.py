"""What a reader delivers: every row, in an order that neither workers nor timing change, and again after a resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_spark.reader import RaggedReader, StateError
from tests.reader.tables import Row, batches_of, epoch_ids, ragged_rows, write_files

ROWS = ragged_rows(700)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_files(tmp_path_factory.mktemp("table"), ROWS, num_files=3, rows_in_group=60)


def reader_of(files: list[str], columns: tuple[str, ...] = ("id", "tokens", "name"), **settings: Any) -> RaggedReader:
    settings = {"batch_rows": 16, "buffer_rows": 200, **settings}
    return RaggedReader(files, list(columns), **settings)


def by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["id"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shuffle": False},
        {"length_column": "tokens"},
        {"batch_rows": None, "batch_tokens": 50, "length_column": "tokens"},
        {"batch_rows": None, "batch_tokens": 50, "length_column": "tokens", "shuffle": False},
        {"pool": "process"},
        {"batch_rows": 7, "buffer_rows": 14},  # row groups are larger
    ],
    ids=str,
)
def test_an_epoch_delivers_every_row_of_the_table_as_it_was_written(files: list[str], settings: dict[str, Any]) -> None:
    batches = batches_of(reader_of(files, **settings).epoch(0))
    assert by_id([row for batch in batches for row in batch]) == ROWS


def test_without_shuffling_rows_come_in_the_order_of_the_files(files: list[str]) -> None:
    ids = [i for batch in epoch_ids(reader_of(files, shuffle=False), 0) for i in batch]
    assert ids == list(range(700))


@pytest.mark.parametrize("settings", [{"num_workers": 1}, {"num_workers": 5}, {"pool": "process"}], ids=str)
def test_the_order_is_the_same_with_any_workers(files: list[str], settings: dict[str, Any]) -> None:
    assert epoch_ids(reader_of(files, **settings), 3) == epoch_ids(reader_of(files), 3)


def test_epochs_differ_and_each_repeats_itself(files: list[str]) -> None:
    reader = reader_of(files)
    first = epoch_ids(reader, 0)
    assert epoch_ids(reader, 1) != first
    assert epoch_ids(reader, 0) == first


def test_shuffled_rows_of_one_row_group_are_spread_over_batches(files: list[str]) -> None:
    for ids in epoch_ids(reader_of(files), 0)[:-1]:
        assert ids != list(range(ids[0], ids[0] + len(ids)))


@pytest.mark.parametrize("world_size", [2, 3, 5, 17])
def test_all_ranks_take_the_same_steps_and_together_deliver_every_row_once(files: list[str], world_size: int) -> None:
    readers = [reader_of(files, ("id",), rank=rank, world_size=world_size) for rank in range(world_size)]
    epochs = [epoch_ids(reader, 2) for reader in readers]
    assert {len(batches) for batches in epochs} == {readers[0].num_steps(2)}
    assert Counter(i for batches in epochs for batch in batches for i in batch) == Counter(range(700))


def test_a_rank_that_ran_out_takes_empty_batches_with_all_columns(tmp_path: Path) -> None:
    files = write_files(tmp_path, ragged_rows(3), 1, 3)
    reader = reader_of(files, rank=0, world_size=2, batch_rows=1)
    batches = list(reader.epoch(0))
    assert [batch.num_rows for batch in batches] == [1, 0]
    tokens = batches[1]["tokens"]
    assert (tokens.values.tolist(), tokens.offsets.tolist()) == ([], [0])
    assert (len(batches[1]["id"]), len(batches[1]["name"])) == (0, 0)
    assert tokens.values.dtype == batches[0]["tokens"].values.dtype


SETTINGS = [{}, {"length_column": "tokens"}, {"batch_rows": None, "batch_tokens": 60, "length_column": "tokens"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_resuming_after_any_batch_gives_exactly_the_batches_that_remain(files: list[str], settings: dict) -> None:
    whole = epoch_ids(reader_of(files, ("id",), **settings), 1)
    for num_taken in range(0, len(whole) + 1, 7):
        epoch = reader_of(files, ("id",), **settings).epoch(1)
        for _ in range(num_taken):
            next(epoch)
        state = json.loads(json.dumps(epoch.state()))
        epoch.close()
        rest = reader_of(files, ("id",), num_workers=3, **settings).resume(state)
        assert [batch["id"].tolist() for batch in rest] == whole[num_taken:]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("world_sizes", [(2, 3), (3, 1, 4), (1, 5, 2)], ids=str)
def test_resuming_with_other_world_sizes_delivers_what_remains_once(
    files: list[str], settings: dict, world_sizes: tuple[int, ...]
) -> None:
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for phase, world_size in enumerate(world_sizes):
        states = []
        for rank in range(world_size):
            reader = reader_of(files, ("id",), rank=rank, world_size=world_size, **settings)
            with reader.epoch(1) if state is None else reader.resume(state) as epoch:
                for step, batch in enumerate(epoch, start=1):
                    seen += batch["id"].tolist()
                    if step == 3 and phase < len(world_sizes) - 1:
                        break
                states.append(epoch.state())
        assert all(rank_state == states[0] for rank_state in states)
        state = states[0]
    assert Counter(seen) == Counter(range(700))


def test_an_epoch_resumed_twice_at_one_world_size_goes_on_where_it_was(files: list[str]) -> None:
    whole = epoch_ids(reader_of(files), 0)
    state = reader_of(files).epoch(0).state()
    seen = []
    while len(seen) < len(whole):
        epoch = reader_of(files).resume(state)
        for _ in range(min(10, len(whole) - len(seen))):
            seen.append(next(epoch)["id"].tolist())
        state = epoch.state()
    assert seen == whole


@pytest.mark.parametrize(
    ("settings", "named"), [({"seed": 1}, "seed"), ({"batch_rows": 8}, "batching"), ({"shuffle": False}, "batching")]
)
def test_a_state_of_another_seed_or_batching_is_refused_by_name(files: list[str], settings: dict, named: str) -> None:
    state = reader_of(files).epoch(0).state()
    with pytest.raises(StateError, match=f"written with {named} "):
        reader_of(files, **settings).resume(state)


def test_a_state_of_another_length_column_is_refused(tmp_path: Path) -> None:
    rows = [[1] * (i % 5) for i in range(60)], [[1] * (i * 7 % 9) for i in range(60)]
    file = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"short": pa.array(rows[0]), "long": pa.array(rows[1])}), file)
    state = RaggedReader([file], ["short"], batch_rows=4, length_column="short").epoch(0).state()
    with pytest.raises(StateError, match=r"written with batching .*'length_column': 'short'"):
        RaggedReader([file], ["short"], batch_rows=4, length_column="long").resume(state)


def test_a_state_of_other_files_is_refused(files: list[str]) -> None:
    state = reader_of(files).epoch(0).state()
    with pytest.raises(StateError, match="snapshot"):
        reader_of(files[:2]).resume(state)


def test_a_token_budget_gives_every_rank_the_same_steps(files: list[str]) -> None:
    settings = {"batch_rows": None, "batch_tokens": 40, "length_column": "tokens"}
    readers = [reader_of(files, rank=rank, world_size=3, **settings) for rank in range(3)]
    for reader in readers:
        batches = list(reader.epoch(0))
        assert len(batches) == readers[0].num_steps(0)
        for batch in batches:
            assert batch["tokens"].padded().numel() <= 40


def test_the_reported_padding_share_is_that_of_the_padded_batches(files: list[str]) -> None:
    reader = reader_of(files, length_column="tokens")
    num_values = num_cells = 0
    for batch in reader.epoch(4):
        num_values += len(batch["tokens"].values)
        num_cells += batch["tokens"].padded().numel()
    assert reader.padding_share(4) == pytest.approx(1 - num_values / num_cells)
