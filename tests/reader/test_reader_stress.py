"""The short form of tests/benchmarks/reader_stress.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.benchmarks.reader_stress import NUM_WORKERS, WORLD_SIZES, read_epoch, write_table


@pytest.mark.parametrize("num_workers", NUM_WORKERS)
def test_every_epoch_over_all_world_sizes_delivers_the_table_exactly_once(tmp_path: Path, num_workers: int) -> None:
    snapshot, rows = write_table(tmp_path)
    for epoch, world_size in zip(range(12), itertools.cycle(WORLD_SIZES), strict=False):
        read_epoch(snapshot, rows, epoch, num_workers, world_size, "thread")
