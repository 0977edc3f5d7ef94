"""How much of a table the reader holds at a time, and how often it reads a row group."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_spark.reader import Epoch, RaggedReader, files
from tests.reader.tables import ragged_rows, write_files


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


@pytest.fixture
def groups_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """File and row group of each read from here on."""
    reads: list[tuple[int, int]] = []
    read = files.Files.read

    def noted_read(self: files.Files, file: int, group: int, *args: Any) -> pa.Table:
        reads.append((file, group))
        return read(self, file, group, *args)

    monkeypatch.setattr(files.Files, "read", noted_read)
    return reads


def test_a_wide_row_group_is_read_once_for_all_its_blocks(tmp_path: Path, groups_read: list[tuple[int, int]]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(1000)}), path, row_group_size=1000)
    epoch = RaggedReader([path], ["id"], batch_rows=9, buffer_rows=64).epoch(0)
    assert sum(batch.num_rows for batch in epoch) == 1000
    assert groups_read == [(0, 0)]


def state_after(num_steps: int, path: Path, world_size: int, **settings: Any) -> dict[str, Any]:
    with RaggedReader([path], ["x"], world_size=world_size, **settings).epoch(0) as epoch:
        for _ in range(num_steps):
            next(epoch)
        return epoch.state()


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_row_group_that_many_ranks_left_in_pieces_is_read_once_by_the_one_that_resumes(
    tmp_path: Path, groups_read: list[tuple[int, int]], shuffle: bool
) -> None:
    write_wide_file(tmp_path / "a.parquet", num_groups=1)
    settings: dict[str, Any] = {"batch_rows": 5, "buffer_rows": 10, "shuffle": shuffle}
    state = state_after(3, tmp_path / "a.parquet", 8, **settings)
    groups_read.clear()
    epoch = RaggedReader([tmp_path / "a.parquet"], ["x"], **settings).resume(state)
    assert sum(batch.num_rows for batch in epoch) == ROWS_IN_GROUP - 3 * 5 * 8
    assert groups_read == [(0, 0)]


def most_memory_of_a_resumed_epoch(path: Path, state: dict[str, Any], **settings: Any) -> int:
    with own_pool() as pool:
        epoch = RaggedReader([path], ["x"], num_workers=1, **settings).resume(state)
        assert num_rows_read(epoch, wait_until_all_has_arrived)
        return pool.max_memory()


def test_one_row_group_resumed_by_fewer_ranks_is_held_a_few_times_at_most(tmp_path: Path) -> None:
    times = 20
    write_wide_file(tmp_path / "a.parquet", num_groups=1, times=times)
    settings: dict[str, Any] = {"batch_rows": 50, "buffer_rows": times * ROWS_IN_GROUP // 50}
    state = state_after(3, tmp_path / "a.parquet", 16, **settings)
    most = most_memory_of_a_resumed_epoch(tmp_path / "a.parquet", state, **settings)
    # What is decoded, what that is made from, and the slabs that are put in order.
    assert most <= 4 * times * GROUP_BYTES


def test_the_little_that_is_left_of_a_row_group_does_not_keep_all_of_it_in_memory(tmp_path: Path) -> None:
    write_wide_file(tmp_path / "a.parquet", num_groups=16)
    settings: dict[str, Any] = {"batch_rows": 50, "buffer_rows": 50, "shuffle": False}
    # Of each row group the last tenth, as one range: twelve such fit under the bound of 600 rows.
    state = state_after(9, tmp_path / "a.parquet", 16, **settings)
    assert most_memory_of_a_resumed_epoch(tmp_path / "a.parquet", state, **settings) <= 5 * GROUP_BYTES


def test_row_groups_larger_than_the_buffer_are_held_one_for_each_worker_and_one_that_is_delivered(
    tmp_path: Path,
) -> None:
    times = 5
    write_wide_file(tmp_path / "a.parquet", num_groups=6, times=times)
    with own_pool() as pool:
        epoch = RaggedReader([tmp_path / "a.parquet"], ["x"], batch_rows=50, num_workers=1, buffer_rows=50).epoch(0)
        assert num_rows_read(epoch, wait_until_all_has_arrived) == 6 * times * ROWS_IN_GROUP
        # Beside those two, what the worker decodes and what it decodes that from.
        assert pool.max_memory() <= 4.5 * times * GROUP_BYTES
