"""Bad input, each refused in one line with the remedy, and small tables that are no bad input."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_spark.reader import RaggedReader, ReaderError, SnapshotError
from tests.reader.tables import SCHEMA, epoch_ids, ragged_rows, write_files


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(SCHEMA.empty_table(), tmp_path / "a.parquet")
    for files in ([], [tmp_path / "a.parquet"]):
        with pytest.raises(SnapshotError, match="has no rows"):
            RaggedReader(files, ["id"], batch_rows=1)


def test_one_row_is_one_batch(tmp_path: Path) -> None:
    assert epoch_ids(RaggedReader(write_files(tmp_path, ragged_rows(1), 1, 1), ["id"], batch_rows=8), 0) == [[0]]


def test_an_empty_file_among_others_changes_nothing(tmp_path: Path) -> None:
    files = write_files(tmp_path, ragged_rows(5), 1, 2)
    pq.write_table(SCHEMA.empty_table(), tmp_path / "empty.parquet")
    reader = RaggedReader([str(tmp_path / "empty.parquet"), *files], ["id"], batch_rows=8, shuffle=False)
    assert epoch_ids(reader, 0) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("num_rows", "rows_in_group", "world_size"), [(10, 10, 4), (3, 1, 8), (1, 1, 5)])
def test_fewer_row_groups_or_rows_than_ranks_still_deliver_each_row_once(
    tmp_path: Path, num_rows: int, rows_in_group: int, world_size: int
) -> None:
    files = write_files(tmp_path, ragged_rows(num_rows), 1, rows_in_group)
    readers = [RaggedReader(files, ["id"], batch_rows=2, rank=r, world_size=world_size) for r in range(world_size)]
    epochs = [epoch_ids(reader, 0) for reader in readers]
    assert {len(batches) for batches in epochs} == {readers[0].num_steps(0)}
    assert Counter(i for batches in epochs for batch in batches for i in batch) == Counter(range(num_rows))


DAMAGES = {
    "cut": lambda whole, size: whole[:-30],
    "text": lambda whole, size: b"not parquet at all",
    "empty": lambda whole, size: b"",
    "zeros": lambda whole, size: whole[: -8 - size] + bytes(size) + whole[-8:],
    "ones": lambda whole, size: whole[: -8 - size] + b"\xff" * size + whole[-8:],
    "garbage": lambda whole, size: whole[: -8 - size] + bytes(7 * i % 256 for i in range(size)) + whole[-8:],
    "too short": lambda whole, size: whole[:-8] + (size - 1).to_bytes(4, "little") + b"PAR1",
    "too long": lambda whole, size: whole[:-8] + (size + 1).to_bytes(4, "little") + b"PAR1",
    "no length": lambda whole, size: whole[:-8] + bytes(4) + b"PAR1",
    "longer than the file": lambda whole, size: whole[:-8] + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_footer_names_the_file(tmp_path: Path, damage: str) -> None:
    good, bad = write_files(tmp_path, ragged_rows(20), 2, 5)
    whole = Path(bad).read_bytes()
    Path(bad).write_bytes(DAMAGES[damage](whole, int.from_bytes(whole[-8:-4], "little")))
    with pytest.raises(SnapshotError, match=r"the footer of .*part-1.parquet: not a sound Parquet file"):
        RaggedReader([good, bad], ["id"], batch_rows=1)


def test_a_folder_among_the_files_is_named(tmp_path: Path) -> None:
    for file in (tmp_path, f"local://{tmp_path}"):
        with pytest.raises(SnapshotError, match=r"the footer of .*: not a sound Parquet file \(.*[Ii]s a directory"):
            RaggedReader([file], ["id"], batch_rows=1)


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_a_corrupt_row_group_reaches_the_caller_with_file_and_row_group(tmp_path: Path, pool: Any) -> None:
    [file] = write_files(tmp_path, ragged_rows(200), 1, 100)
    start = pq.read_metadata(file).row_group(1).column(0).dictionary_page_offset
    data = bytearray(Path(file).read_bytes())
    data[start : start + 60] = b"\xff" * 60
    Path(file).write_bytes(data)
    reader = RaggedReader([file], ["id"], batch_rows=10, pool=pool, num_attempts=1)
    with pytest.raises(ReaderError, match=r"row group 1 of .*part-0.parquet"):
        list(reader.epoch(0))


def test_a_file_that_changed_under_the_reader_is_named(tmp_path: Path) -> None:
    files = write_files(tmp_path, ragged_rows(20), 1, 10)
    reader = RaggedReader(files, ["id"], batch_rows=10, shuffle=False)
    write_files(tmp_path, ragged_rows(6), 1, 3)
    with pytest.raises(SnapshotError, match=r"row group [01] of .*part-0.parquet has 3 rows where its footer had 10"):
        list(reader.epoch(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_rows": None}, "give one of batch_rows and batch_tokens"),
        ({"batch_tokens": 5}, "give one of batch_rows and batch_tokens"),
        ({"batch_rows": None, "batch_tokens": 5}, "batch_tokens needs length_column"),
        ({"batch_rows": 0}, "batch_rows is 0: give 1 or more"),
        ({"num_workers": 0}, "num_workers is 0: give 1 or more"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is not one of 0..1"),
        ({"seed": -1}, "seed is -1: give 0 or more"),
        ({"pool": "fibre"}, "pool is 'fibre': give 'thread' or 'process'"),
        ({"columns": []}, "columns must be a non-empty list"),
        ({"columns": ["id", "id"]}, "columns must be a non-empty list of distinct names"),
        ({"columns": "id"}, "columns is 'id': give a list of names"),
        ({"length_column": "id"}, "length_column 'id' is no list column"),
        ({"fill_values": {"ids": 1}}, r"fill_values names \['ids'\]"),
        ({"files": "part-0.parquet"}, "files is 'part-0.parquet': give a list"),
        ({"files": ["memory://t/a.parquet"], "pool": "process"}, "is in this process's memory"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_are_refused_with_the_remedy(tmp_path: Path, settings: dict, message: str) -> None:
    arguments = {"files": write_files(tmp_path, ragged_rows(4), 1, 2), "columns": ["id"], "batch_rows": 1, **settings}
    with pytest.raises(ReaderError, match=message):
        RaggedReader(**arguments)


def test_an_epoch_below_zero_is_refused(tmp_path: Path) -> None:
    reader = RaggedReader(write_files(tmp_path, ragged_rows(4), 1, 2), ["id"], batch_rows=1)
    with pytest.raises(ReaderError, match="epoch is -1: give 0 or more"):
        reader.epoch(-1)


def test_every_message_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"x" * 40)
    pq.write_table(pa.table({"s": pa.array([{"a": {"b": 1}}])}), tmp_path / "struct.parquet")
    for file, column in (("bad.parquet", "s"), ("struct.parquet", "s"), ("none.parquet", "s")):
        with pytest.raises(ReaderError) as caught:
            RaggedReader([tmp_path / file], [column], batch_rows=1)
        assert "\n" not in str(caught.value)
