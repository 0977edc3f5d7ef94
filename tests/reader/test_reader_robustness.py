"""What may go wrong while reading: failing storage, dying workers, an abandoned or interrupted epoch, a pool that lies."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from llm_spark.reader import (
    Epoch,
    RaggedReader,
    ReaderError,
    ReadError,
    Snapshot,
    compat,
    files,
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


def test_rows_held_stay_within_workers_times_row_group_plus_two_buffers(tmp_path: Path) -> None:
    files_ = write_files(tmp_path, ragged_rows(2000), 2, 50)
    for num_workers, buffer_rows in [(1, 100), (4, 100), (2, 500)]:
        epoch = RaggedReader(files_, ["id"], batch_rows=10, num_workers=num_workers, buffer_rows=buffer_rows).epoch(0)
        held = []
        for _ in epoch:
            held.append(epoch._delivery._num_rows_held)
        # A block's first and last row group may reach beyond it; with one worker that is one row group more.
        assert max(held) <= 2 * buffer_rows + max(2, num_workers) * 50


@contextmanager
def own_pool() -> Iterator[pa.MemoryPool]:
    """Arrow's default memory pool while the block runs: it counts nothing that other tests still hold or give back."""
    former = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(former)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(former)


NUM_GROUPS, ROWS_IN_GROUP, ROW_LENGTH = 60, 500, 200
GROUP_BYTES = ROWS_IN_GROUP * ROW_LENGTH * 8


def write_wide_file(path: Path, num_groups: int = NUM_GROUPS, times: int = 1) -> None:
    """Row groups of `times` x GROUP_BYTES, whose pages hold the values as they are: what one is decoded from is then as large as it is."""
    values = pa.array(range(times * ROWS_IN_GROUP * ROW_LENGTH), pa.int64())
    lists = pa.FixedSizeListArray.from_arrays(values, ROW_LENGTH).cast(pa.list_(pa.int64()))
    table = pa.table({"x": pa.chunked_array([lists] * num_groups)})
    pq.write_table(table, path, row_group_size=times * ROWS_IN_GROUP, use_dictionary=False, compression="none")


def num_rows_read(epoch: Epoch, after_each: Callable[[Epoch], object]) -> int:
    """Reads it; no batch outlives the call, as none may outlive the pool that its memory is from."""
    num_rows = 0
    for batch in epoch:
        num_rows += batch.num_rows
        after_each(epoch)
    return num_rows


def wait_until_all_has_arrived(epoch: Epoch) -> None:
    """As a slow consumer does: until the workers have read all that they may hold for it."""
    delivery = epoch._delivery
    while delivery._pool is not None and delivery._pool.results_qsize() < len(delivery._outstanding):
        delivery.check()
        time.sleep(0.001)


@pytest.mark.parametrize("is_slow", [False, True])
def test_memory_is_bounded_by_workers_times_row_group_plus_two_buffers(tmp_path: Path, is_slow: bool) -> None:
    write_wide_file(tmp_path / "a.parquet")
    with own_pool() as pool:
        reader = RaggedReader(
            [tmp_path / "a.parquet"], ["x"], batch_rows=50, num_workers=2, buffer_rows=4 * ROWS_IN_GROUP
        )
        num_rows = num_rows_read(reader.epoch(0), wait_until_all_has_arrived if is_slow else bool)
        assert num_rows == NUM_GROUPS * ROWS_IN_GROUP
        most = pool.max_memory()
    # Held: two workers' groups and two buffers of four. Beside that, each worker has a group decoded and what it decodes
    # it from; and of the rows put in order (a buffer's here) there are these and the ones before.
    assert 4 * GROUP_BYTES <= most <= (2 + 2 * 4 + 2 * 2 + 2 * 4) * GROUP_BYTES


def most_resident_bytes(pid: int) -> int:
    """A process's largest resident set so far."""
    told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert told is not None
    return int(told[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to tell a process's resident set")
def test_a_worker_process_holds_no_more_of_a_long_file_than_of_a_short_one(tmp_path: Path) -> None:
    times, most = 10, {}
    for num_groups in (2, 40):
        path = tmp_path / f"{num_groups}.parquet"
        write_wide_file(path, num_groups, times)
        reader = RaggedReader(
            [path], ["x"], batch_rows=500, pool="process", num_workers=1, buffer_rows=times * ROWS_IN_GROUP
        )
        seen: list[int] = []
        with reader.epoch(0) as epoch:
            for batch in epoch:
                assert batch.num_rows == 500
                seen.append(most_resident_bytes(epoch._delivery._pool._workers[0].pid))
        assert len(seen) == num_groups * times
        most[num_groups] = seen[-1]
    # 38 row groups more are 304 MB more to read; what the allocators keep of them is within a few.
    assert most[40] - most[2] <= 6 * times * GROUP_BYTES


def test_two_epochs_of_one_reader_may_run_at_once(table: list[str]) -> None:
    reader = RaggedReader(table, ["id"], batch_rows=9)
    pairs = list(zip(reader.epoch(0), reader.epoch(0), strict=True))
    assert all(a["id"].tolist() == b["id"].tolist() for a, b in pairs)


def test_a_wide_row_group_is_read_once_for_all_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(1000)}), path, row_group_size=1000)
    reads = []
    read = files.Files.read
    monkeypatch.setattr(files.Files, "read", lambda self, *args: (reads.append(args[:2]), read(self, *args))[1])
    assert num_rows_of(RaggedReader([path], ["id"], batch_rows=9, buffer_rows=64).epoch(0)) == 1000
    assert reads == [(0, 0)]
