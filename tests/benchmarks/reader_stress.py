"""No row is ever lost or repeated: python -m tests.benchmarks.reader_stress [--epochs 1000] [--pool thread]

Reads whole epochs of a table with an id column over workers {1, 2, 4, 10} x world sizes {1, 2, 3, 5, 8, 17}, in each of
the reader's ways to batch, and asserts after each epoch that all ranks together delivered exactly the ids of the table,
each with its own tokens, in the same number of steps. Every third epoch is broken off and resumed at another world
size.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_spark.reader import Batch, Ragged, RaggedReader

NUM_WORKERS = (1, 2, 4, 10)
WORLD_SIZES = (1, 2, 3, 5, 8, 17)
BATCHINGS: tuple[dict[str, Any], ...] = (
    {"batch_rows": 16},
    {"batch_rows": 16, "length_column": "tokens"},
    {"batch_tokens": 200, "length_column": "tokens"},
    {"batch_rows": 16, "shuffle": False},
)
NUM_ROWS = 437


def write_table(folder: Path) -> list[str]:
    """437 rows in row groups of 1 to 60; row i has the tokens i, i + 1, ... so that a mix-up shows."""
    random = np.random.default_rng(0)
    paths, first = [], 0
    while first < NUM_ROWS:
        num_rows = min(int(random.integers(40, 160)), NUM_ROWS - first)
        lengths = random.integers(0, 9, num_rows).tolist()
        tokens = [list(range(i, i + length)) for i, length in enumerate(lengths, start=first)]
        table = pa.table({"id": np.arange(first, first + num_rows), "tokens": pa.array(tokens, pa.list_(pa.int32()))})
        paths.append(str(folder / f"part-{len(paths)}.parquet"))
        pq.write_table(table, paths[-1], row_group_size=int(random.integers(1, 60)))
        first += num_rows
    return paths


def ids_of(batch: Batch) -> list[int]:
    """The ids of a batch, after a check that each row's tokens are its own."""
    ids, tokens = batch["id"], batch["tokens"]
    assert isinstance(tokens, Ragged)
    for row, (start, stop) in zip(ids.tolist(), itertools.pairwise(tokens.offsets.tolist()), strict=True):
        assert tokens.values[start:stop].tolist() == list(range(row, row + stop - start))
    return ids.tolist()


def read_epoch(files: list[str], epoch: int, num_workers: int, world_size: int, pool: str) -> None:
    """Read one epoch on all ranks and compare with the table.

    Raises:
        AssertionError: a row is missing, repeated or mixed up, or ranks differ in their steps.
    """
    # Each round of the grid shifts the way of batching and the epochs that are broken off, so that all meet all.
    grid_round = epoch // (len(NUM_WORKERS) * len(WORLD_SIZES))
    batching = BATCHINGS[(epoch + grid_round) % len(BATCHINGS)]
    settings = {"num_workers": num_workers, "pool": pool, "buffer_rows": 100, **batching}

    def readers(world: int) -> list[RaggedReader]:
        return [
            RaggedReader(files, ["id", "tokens"], seed=1, rank=rank, world_size=world, **settings)
            for rank in range(world)
        ]

    seen: list[int] = []
    state = None
    if (epoch + grid_round // len(BATCHINGS)) % 3 == 2:
        states = []
        for reader in readers(1 + epoch % 4):
            with reader.epoch(epoch) as batches:
                seen += [i for batch in itertools.islice(batches, 3) for i in ids_of(batch)]
                states.append(batches.state())
        state = states[0]
        assert all(other == state for other in states)
    num_steps = set()
    for reader in readers(world_size):
        of_rank = [ids_of(batch) for batch in (reader.epoch(epoch) if state is None else reader.resume(state))]
        num_steps.add(len(of_rank))
        seen += itertools.chain.from_iterable(of_rank)
    where = f"epoch {epoch}, {num_workers} workers, world size {world_size}, {settings}"
    assert len(num_steps) == 1, f"{where}: ranks took {num_steps} steps"
    assert sorted(seen) == list(range(NUM_ROWS)), f"{where}: the rows delivered are not those of the table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000, help="epochs in all, spread over workers x world sizes")
    parser.add_argument("--pool", choices=["thread", "process"], default="thread")
    arguments = parser.parse_args()
    grid = list(itertools.product(NUM_WORKERS, WORLD_SIZES))
    with tempfile.TemporaryDirectory() as folder:
        files = write_table(Path(folder))
        for epoch in range(arguments.epochs):
            num_workers, world_size = grid[epoch % len(grid)]
            read_epoch(files, epoch, num_workers, world_size, arguments.pool)
    print(f"{arguments.epochs} epochs of {NUM_ROWS} rows: every row exactly once in each")


if __name__ == "__main__":
    main()
