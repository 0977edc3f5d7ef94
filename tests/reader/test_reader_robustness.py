"""What may go wrong while reading: failing storage, dying workers, an abandoned or interrupted epoch, a pool that lies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from llm_spark.reader import (
    RaggedReader,
    ReaderError,
    ReadError,
    Snapshot,
    compat,
    storage,
)
from tests.reader.tables import SCHEMA, ragged_rows, rows_of, write_files

NUM_ROWS = 400


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_files(tmp_path_factory.mktemp("table"), ragged_rows(NUM_ROWS), 2, 10)


class FlakyFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Local files behind a URL of their own: the next `num_failures` opens fail, and all wait for the gate."""

    protocol = "flaky"
    cachable = False
    num_failures = 0
    failure: type[Exception] = OSError
    num_opens = 0
    gate: threading.Event | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("flaky://")

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        cls = FlakyFileSystem
        cls.num_opens += 1
        if cls.gate is not None:
            cls.gate.wait()
        if cls.num_failures:
            cls.num_failures -= 1
            raise cls.failure("connection reset")
        return open(path, mode)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.open("/dev/null").close()
        return LocalFileSystem().ls(self._strip_protocol(path), detail)


class ResetError(Exception):
    """As botocore's and others': no OSError."""


@pytest.fixture
def flaky(table: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(storage, "_FIRST_BACKOFF_SECONDS", 0.001)
    FlakyFileSystem.num_failures = FlakyFileSystem.num_opens = 0
    FlakyFileSystem.failure = OSError
    FlakyFileSystem.gate = None
    yield [f"flaky://{path}" for path in table]
    if FlakyFileSystem.gate is not None:
        FlakyFileSystem.gate.set()
    for thread in worker_threads():
        thread.join()


def num_rows_of(batches: Iterator[Any]) -> int:
    return sum(batch.num_rows for batch in batches)


def worker_threads() -> list[threading.Thread]:
    """Petastorm's, and the reader's own."""
    return [
        thread
        for thread in threading.enumerate()
        if type(thread).__name__ == "WorkerThread" or thread.name.startswith("llm_spark reader")
    ]


def test_files_behind_an_fsspec_url_are_read(table: list[str]) -> None:
    memory = MemoryFileSystem()
    for path in table:
        memory.pipe(f"/reader-test/{Path(path).name}", Path(path).read_bytes())
    urls = [f"memory://reader-test/{Path(path).name}" for path in table]
    reader = RaggedReader(urls, ["id", "tokens", "name"], batch_rows=9)
    rows = [row for batch in reader.epoch(0) for row in rows_of(batch)]
    memory.rm("/reader-test", recursive=True)
    assert sorted(rows, key=lambda row: row["id"]) == ragged_rows(NUM_ROWS)


class LockedFileSystem(FlakyFileSystem):
    """Opens for those with the key, as a storage with credentials does."""

    protocol = "locked"

    def __init__(self, key: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._key = key

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("locked://")

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if self._key != "right":
            raise PermissionError("no right key")
        return super().open(path, mode, **kwargs)


def test_storage_options_reach_the_log_and_the_files(tmp_path: Path) -> None:
    fsspec.register_implementation("locked", LockedFileSystem, clobber=True)
    write_deltalake(str(tmp_path), pa.Table.from_pylist(ragged_rows(NUM_ROWS), schema=SCHEMA))
    key = {"key": "right"}
    snapshot = Snapshot.of_delta(f"locked://{tmp_path}", storage_options=key)
    reader = RaggedReader(snapshot, ["id"], batch_rows=9, storage_options=key)
    assert sorted(row["id"] for batch in reader.epoch(0) for row in rows_of(batch)) == list(range(NUM_ROWS))
    with pytest.raises(ReaderError, match="no right key"):
        Snapshot.of_delta(f"locked://{tmp_path}", num_attempts=1)
    with pytest.raises(ReaderError, match="no right key"):
        RaggedReader(snapshot, ["id"], batch_rows=9, num_attempts=1)


def test_a_file_url_is_a_local_file(table: list[str]) -> None:
    assert RaggedReader([f"file://{path}" for path in table], ["id"], batch_rows=9).num_rows == NUM_ROWS


@pytest.mark.parametrize("failure", [OSError, ResetError])
def test_a_failing_read_is_tried_again_and_nothing_is_lost(flaky: list[str], failure: type[Exception]) -> None:
    FlakyFileSystem.num_failures, FlakyFileSystem.failure = 3, failure
    reader = RaggedReader(flaky, ["id"], batch_rows=9, num_attempts=4)
    assert FlakyFileSystem.num_failures == 0
    FlakyFileSystem.num_failures = 3
    ids = [i for batch in reader.epoch(0) for i in batch["id"].tolist()]
    assert sorted(ids) == list(range(NUM_ROWS))
    assert FlakyFileSystem.num_failures == 0


def test_a_read_that_goes_on_failing_is_reported_with_file_row_group_and_attempts(flaky: list[str]) -> None:
    reader = RaggedReader(flaky, ["id"], batch_rows=9, num_attempts=3)
    FlakyFileSystem.num_failures = 10**6
    with pytest.raises(
        ReadError, match=r"row group \d+ of flaky://.*: failed 3 times, last with OSError: conn.* reset"
    ):
        list(reader.epoch(0))
    with pytest.raises(ReadError, match=r"the footer of flaky://.*: failed 2 times"):
        RaggedReader(flaky, ["id"], batch_rows=9, num_attempts=2)


def test_storage_that_hangs_is_given_up_after_the_stall_limit(flaky: list[str]) -> None:
    reader = RaggedReader(flaky, ["id"], batch_rows=9, stall_seconds=0.05)
    FlakyFileSystem.gate = threading.Event()
    with pytest.raises(ReadError, match=r"nothing came for 0.05 s; the next is row group \d+ of flaky://"):
        list(reader.epoch(0))


def test_storage_that_hangs_already_at_the_footers_is_given_up_too(flaky: list[str]) -> None:
    FlakyFileSystem.gate = threading.Event()
    with pytest.raises(ReadError, match=r"the footers of the list of files: nothing came for 0.05 s, 0 of 2 are read"):
        RaggedReader(flaky, ["id"], batch_rows=9, stall_seconds=0.05)


@pytest.mark.parametrize("hangs", ["the list", "a commit"])
def test_storage_that_hangs_already_at_the_log_is_given_up_too(
    flaky: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    write_deltalake(str(tmp_path / "t"), pa.table({"id": [1, 2]}))
    if hangs == "a commit":
        entries = LocalFileSystem().ls(f"{tmp_path}/t/_delta_log", detail=False)
        monkeypatch.setattr(FlakyFileSystem, "ls", lambda *_, **__: entries)
    FlakyFileSystem.gate = threading.Event()
    with pytest.raises(ReadError, match=r"the log of flaky://.*/t: nothing came for 0.05 s, 0 of 1 are read"):
        Snapshot.of_delta(f"flaky://{tmp_path}/t", stall_seconds=0.05)


class CountingEvent(threading.Event):
    """Is never waited for; adds up how long it would have been."""

    num_seconds = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.num_seconds += timeout or 0.0
        return False


def test_a_fault_of_several_seconds_is_outlasted_by_default() -> None:
    def fail() -> None:
        raise OSError("slow down")

    waited = CountingEvent()
    with pytest.raises(
        ReadError, match=r"^the footer: failed 6 times, last with OSError: slow down; check the storage"
    ):
        storage.retried("the footer", fail, storage.NUM_ATTEMPTS, waited)
    assert 5 <= waited.num_seconds <= 20


def test_a_programming_error_is_not_taken_for_a_fault_of_the_storage(flaky: list[str]) -> None:
    FlakyFileSystem.num_failures, FlakyFileSystem.failure = 10**6, TypeError
    with pytest.raises(TypeError):
        RaggedReader(flaky[:1], ["id"], batch_rows=9)
    assert FlakyFileSystem.num_opens == 1


@pytest.mark.parametrize("failure", [OSError, ResetError])
def test_a_log_is_read_again_where_the_storage_fails(
    flaky: list[str], tmp_path: Path, failure: type[Exception]
) -> None:
    write_deltalake(str(tmp_path / "t"), pa.table({"id": [1, 2]}))
    DeltaTable(str(tmp_path / "t")).create_checkpoint()
    write_deltalake(str(tmp_path / "t"), pa.table({"id": [3]}), mode="append")
    # The folder's list, the checkpoint, the commit: each fails twice.
    expected = [str(tmp_path / "t")] * 2
    FlakyFileSystem.failure = failure
    for num_failures in (2, 3):
        FlakyFileSystem.num_failures = num_failures
        files_ = Snapshot.of_delta(f"flaky://{tmp_path}/t", num_attempts=4).files
        assert [file.removeprefix("flaky://").rsplit("/", 1)[0] for file in files_] == expected
        assert FlakyFileSystem.num_failures == 0
    FlakyFileSystem.num_failures = 10**6
    with pytest.raises(ReadError, match=r"the log of flaky://.*/t: failed 2 times, last with"):
        Snapshot.of_delta(f"flaky://{tmp_path}/t", num_attempts=2)


@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_a_reader_dropped_in_mid_epoch_leaves_no_thread_and_no_open_file(table: list[str], num_batches: int) -> None:
    before, threads_before = psutil.Process().num_fds(), set(threading.enumerate())
    epoch = RaggedReader(table, ["id"], batch_rows=9, num_workers=4).epoch(0)
    for _ in range(num_batches):
        next(epoch)
    assert len([t for t in worker_threads() if type(t).__name__ == "WorkerThread"]) == 4
    del epoch
    assert set(threading.enumerate()) <= threads_before
    assert psutil.Process().num_fds() == before


def test_leaving_the_loop_ends_the_workers(table: list[str]) -> None:
    for _batch in RaggedReader(table, ["id"], batch_rows=9).epoch(0):
        break
    assert worker_threads() == []


def test_an_error_in_the_caller_ends_the_workers_of_a_with_block(table: list[str]) -> None:
    def train() -> None:
        with RaggedReader(table, ["id"], batch_rows=9).epoch(0) as epoch:
            next(epoch)
            raise RuntimeError("loss is nan")

    with pytest.raises(RuntimeError, match="loss is nan"):
        train()
    assert worker_threads() == []


def test_any_exception_in_a_worker_reaches_the_caller_with_file_and_row_group(
    table: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SystemExit("worker gone")

    monkeypatch.setattr("llm_spark.reader.worker.conform", fail)
    with pytest.raises(ReadError, match=r"row group \d+ of .*part-\d.parquet: SystemExit: worker gone"):
        list(RaggedReader(table, ["id"], batch_rows=9).epoch(0))
    assert worker_threads() == []


def test_a_pool_that_reports_its_end_too_early_is_an_error_and_never_a_short_epoch(
    table: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_results = compat.ThreadPool.get_results
    num_results = 0

    def end_early(pool: Any) -> Any:
        nonlocal num_results
        num_results += 1
        if num_results == 7:
            raise compat.EmptyResultError
        return get_results(pool)

    monkeypatch.setattr(compat.ThreadPool, "get_results", end_early)
    with pytest.raises(ReaderError, match=r"reports its end while .* row groups are outstanding"):
        list(RaggedReader(table, ["id"], batch_rows=9).epoch(0))


def test_two_epochs_of_one_reader_may_run_at_once(table: list[str]) -> None:
    reader = RaggedReader(table, ["id"], batch_rows=9)
    pairs = list(zip(reader.epoch(0), reader.epoch(0), strict=True))
    assert all(a["id"].tolist() == b["id"].tolist() for a, b in pairs)
