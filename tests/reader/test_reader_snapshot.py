"""Which files make up a snapshot: Delta versions as delta-rs wrote them, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from fsspec.implementations.local import LocalFileSystem

from llm_spark.reader import RaggedReader, ReaderError, Snapshot, SnapshotError
from tests.reader.tables import SCHEMA, Row, ragged_rows, rows_of, write_files


def append(table: Path, rows: list[Row], **settings: Any) -> None:
    write_deltalake(str(table), pa.Table.from_pylist(rows, schema=SCHEMA), mode="append", **settings)


def rows_read(snapshot: Snapshot) -> list[Row]:
    reader = RaggedReader(snapshot, ["id", "tokens", "name"], batch_rows=7)
    return sorted((row for batch in reader.epoch(0) for row in rows_of(batch)), key=lambda row: row["id"])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Versions: 0 rows 0-9, 1 rows 10-19, 2 deletes odd ids below 10, 3 rows 20-24."""
    table = tmp_path / "a table"
    append(table, ragged_rows(10))
    append(table, ragged_rows(10, seed=1, first_id=10))
    DeltaTable(str(table)).delete("id < 10 AND id % 2 = 1")
    append(table, ragged_rows(5, seed=2, first_id=20))
    return table


EXPECTED_IDS = {
    0: list(range(10)),
    1: list(range(20)),
    2: [0, 2, 4, 6, 8, *range(10, 20)],
    3: [0, 2, 4, 6, 8, *range(10, 25)],
}


@pytest.mark.parametrize("version", EXPECTED_IDS)
def test_a_version_is_read_as_it_was_after_delete_and_append(table: Path, version: int) -> None:
    rows = rows_read(Snapshot.of_delta(str(table), version))
    assert [row["id"] for row in rows] == EXPECTED_IDS[version]
    assert rows == DeltaTable(str(table), version=version).to_pyarrow_table().sort_by("id").to_pylist()


def test_the_newest_version_is_the_default(table: Path) -> None:
    snapshot = Snapshot.of_delta(str(table))
    assert (snapshot.version, str(snapshot)) == (3, f"version 3 of {table}")


class Remembering(LocalFileSystem):
    """Keeps what it has listed, as fsspec's file systems of object stores do."""

    protocol = "remembering"

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        return self.dircache[path] if detail else [entry["name"] for entry in self.dircache[path]]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


def test_a_commit_of_somebody_else_is_seen_where_the_file_system_keeps_what_it_has_listed(table: Path) -> None:
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    assert Snapshot.of_delta(f"remembering://{table}").version == 3
    append(table, ragged_rows(1, first_id=40))
    assert Snapshot.of_delta(f"remembering://{table}").version == 4


def test_a_checkpoint_and_the_commits_after_it_make_the_version(table: Path) -> None:
    DeltaTable(str(table)).create_checkpoint()
    append(table, ragged_rows(2, first_id=30))
    for commit in sorted((table / "_delta_log").glob("*.json"))[:4]:
        if commit.name[0].isdigit():
            commit.unlink()
    rows = rows_read(Snapshot.of_delta(str(table), 4))
    assert [row["id"] for row in rows] == [*EXPECTED_IDS[3], 30, 31]
    with pytest.raises(SnapshotError, match="log of version 0 is gone"):
        Snapshot.of_delta(str(table), 2)


def test_files_are_chosen_by_their_partition(tmp_path: Path) -> None:
    rows = pa.table({"id": [1, 2, 3], "split": ["train", "test a/b", "train"]})
    write_deltalake(str(tmp_path / "t"), rows, partition_by=["split"])
    for split, ids in {"train": [1, 3], "test a/b": [2]}.items():
        snapshot = Snapshot.of_delta(str(tmp_path / "t"), partitions={"split": split})
        [batch] = RaggedReader(snapshot, ["id"], batch_rows=9, shuffle=False).epoch(0)
        assert batch["id"].tolist() == ids
    with pytest.raises(SnapshotError, match=r"not partitioned by \['day'\]: its partition columns are \['split'\]"):
        Snapshot.of_delta(str(tmp_path / "t"), partitions={"day": "1"})
    with pytest.raises(ReaderError, match=r"\['split'\] are partition columns of .*/t"):
        RaggedReader(Snapshot.of_delta(str(tmp_path / "t")), ["split"], batch_rows=1)


def test_a_vacuumed_file_is_named_with_the_version_that_lists_it(table: Path) -> None:
    old = Snapshot.of_delta(str(table), 1)
    DeltaTable(str(table)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(SnapshotError, match=r"\.parquet: the file is gone though version 1 of .*a table lists it"):
        RaggedReader(old, ["id"], batch_rows=1)


def test_a_file_vacuumed_while_reading_is_named_with_the_version_that_lists_it(table: Path) -> None:
    snapshot = Snapshot.of_delta(str(table), 3)
    reader = RaggedReader(snapshot, ["id"], batch_rows=1)
    for file in snapshot.files:
        os.unlink(file)
    with pytest.raises(SnapshotError, match="the file is gone though version 3 of"):
        list(reader.epoch(0))


def commit(table: Path, version: int, *actions: dict[str, Any]) -> None:
    lines = "\n".join(json.dumps(action) for action in actions)
    (table / "_delta_log" / f"{version:020d}.json").write_text(lines)


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("name", [f"{2:020d}.json", f"{1:020d}.checkpoint.parquet"])
def test_a_damaged_file_of_the_log_is_named(table: Path, name: str, is_cut: bool) -> None:
    DeltaTable(str(table), version=1).create_checkpoint()
    file = table / "_delta_log" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] if is_cut else whole[:-90] + b"\xff" * 82 + whole[-8:])
    with pytest.raises(SnapshotError, match=rf"{name} is damaged, or not yet written to its end \("):
        Snapshot.of_delta(str(table))


def test_deletion_vectors_are_refused_by_name_with_the_remedy(table: Path) -> None:
    actions = [json.loads(line) for line in (table / "_delta_log" / f"{1:020d}.json").read_text().splitlines()]
    add = next(action["add"] for action in actions if "add" in action)
    vector = {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^", "offset": 4, "sizeInBytes": 40}
    vector["cardinality"] = 6
    remove = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    commit(table, 4, {"remove": remove}, {"add": {**add, "deletionVector": vector}})
    snapshot = Snapshot.of_delta(str(table))
    with pytest.raises(SnapshotError, match=r"version 4 of .* has deletion vectors on 1 files.*REORG TABLE"):
        RaggedReader(snapshot, ["id"], batch_rows=1)
    # Once the marked file is rewritten, the table reads again.
    commit(table, 5, {"remove": {**remove, "deletionVector": vector}})
    assert [row["id"] for row in rows_read(Snapshot.of_delta(str(table)))] == [0, 2, 4, 6, 8, *range(20, 25)]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"protocol": {"minReaderVersion": 3, "readerFeatures": ["catalogManaged"]}}, r"features \['catalogManaged'\]"),
        (
            {"protocol": {"minReaderVersion": 4}},
            "has minReaderVersion 4 and this reader knows the protocol up to 3: copy",
        ),
        ({"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}}, "uses column mapping"),
    ],
)
def test_what_the_log_reading_does_not_understand_is_refused_by_name(table: Path, action: dict, message: str) -> None:
    commit(table, 4, action)
    with pytest.raises(SnapshotError, match=message):
        Snapshot.of_delta(str(table))


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_version_that_only_a_version_2_checkpoint_covers_is_refused_by_its_name(table: Path, kind: str) -> None:
    log = table / "_delta_log"
    (log / f"{2:020d}.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.{kind}").write_bytes(b"")
    assert Snapshot.of_delta(str(table)).version == 3
    for version in (0, 1):
        (log / f"{version:020d}.json").unlink()
    for version in (2, 3):
        with pytest.raises(SnapshotError, match=rf"version 2 checkpoint \({2:020d}\.checkpoint.*{kind}\).*classic"):
            Snapshot.of_delta(str(table), version)
    (log / f"{2:020d}.json").unlink()
    with pytest.raises(SnapshotError, match="version 2 checkpoint"):
        Snapshot.of_delta(str(table))


def test_a_version_that_is_not_there_and_a_folder_without_a_log_are_refused(table: Path) -> None:
    with pytest.raises(SnapshotError, match="has no version 9: its newest is 3"):
        Snapshot.of_delta(str(table), 9)
    with pytest.raises(SnapshotError, match="has no _delta_log folder"):
        Snapshot.of_delta(str(table.parent))


def test_a_snapshot_without_a_version_is_named_by_its_table(tmp_path: Path) -> None:
    files = write_files(tmp_path, ragged_rows(4), 2, 2)
    assert rows_read(Snapshot(tuple(files))) == ragged_rows(4)
    with pytest.raises(SnapshotError, match="though mine lists it"):
        RaggedReader(Snapshot((str(tmp_path / "none.parquet"),), table="mine"), ["id"], batch_rows=1)
