"""No row is ever lost or repeated: python -m tests.benchmarks.reader_stress [--epochs 1000] [--pool thread]

Reads whole epochs of one version of a Delta table with an id column, over workers {1, 2, 4, 10} x world sizes
{1, 2, 3, 5, 8, 17}, in each of the reader's ways to batch, and asserts after each epoch that all ranks together
delivered exactly the rows that were written, each with its own tokens, in the same number of steps. Every third epoch is
broken off and resumed at another world size. The versions before and after have another file each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_spark.reader import Batch, Ragged, RaggedReader, Snapshot

NUM_WORKERS = (1, 2, 4, 10)
WORLD_SIZES = (1, 2, 3, 5, 8, 17)
# A few epochs already meet every number of workers.
GRID = list(itertools.product(WORLD_SIZES, NUM_WORKERS))
BATCHINGS: tuple[dict[str, Any], ...] = (
    {"batch_rows": 16},
    {"batch_rows": 16, "length_column": "tokens"},
    {"batch_tokens": 200, "length_column": "tokens"},
    {"batch_rows": 16, "shuffle": False},
)
NUM_ROWS = 437


Rows = dict[int, list[int]]
"""Tokens by id."""


def write_table(folder: Path) -> tuple[Snapshot, Rows]:
    """Version 1 of a Delta table and its rows: 437 in row groups of 1 to 60; row i has the tokens i, i + 1, ... so that a mix-up shows."""
    random = np.random.default_rng(0)
    rows: Rows = {}
    names: list[str] = []
    while len(rows) < NUM_ROWS:
        first = len(rows)
        num_rows = min(int(random.integers(40, 160)), NUM_ROWS - first)
        lengths = random.integers(0, 9, num_rows).tolist()
        of_file = {i: list(range(i, i + length)) for i, length in enumerate(lengths, start=first)}
        names.append(_write_file(folder, f"part-{len(names)}.parquet", of_file, int(random.integers(1, 60))))
        rows |= of_file
    before, after = (_write_file(folder, f"{name}.parquet", {-1: [0]}, 1) for name in ("before", "after"))
    schema = {"type": "struct", "fields": []}
    metadata = {
        "id": "0",
        "format": {"provider": "parquet"},
        "schemaString": json.dumps(schema),
        "partitionColumns": [],
    }
    protocol = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}
    _commit(folder, 0, protocol, {"metaData": metadata}, {"add": {"path": before}})
    _commit(folder, 1, {"remove": {"path": before}}, *({"add": {"path": name}} for name in names))
    _commit(folder, 2, {"remove": {"path": names[0]}}, {"add": {"path": after}})
    return Snapshot.of_delta(str(folder), 1), rows


def _write_file(folder: Path, name: str, rows: Rows, group_rows: int) -> str:
    ids = pa.array(list(rows), pa.int64())
    table = pa.table({"id": ids, "tokens": pa.array(list(rows.values()), pa.list_(pa.int32()))})
    pq.write_table(table, folder / name, row_group_size=group_rows)
    return name


def _commit(folder: Path, version: int, *actions: dict[str, Any]) -> None:
    log = folder / "_delta_log"
    log.mkdir(exist_ok=True)
    (log / f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def ids_of(batch: Batch, rows: Rows) -> list[int]:
    """The ids of a batch, after a check that each row's tokens are its own, all of them."""
    ids, tokens = batch["id"], batch["tokens"]
    assert isinstance(tokens, Ragged)
    for row, (start, stop) in zip(ids.tolist(), itertools.pairwise(tokens.offsets.tolist()), strict=True):
        assert tokens.values[start:stop].tolist() == rows[row]
    return ids.tolist()


def read_epoch(snapshot: Snapshot, rows: Rows, epoch: int, num_workers: int, world_size: int, pool: str) -> None:
    """Read one epoch on all ranks and compare with the rows that were written.

    Raises:
        AssertionError: a row is missing, repeated or mixed up, or ranks differ in their steps.
    """
    # Each round of the grid shifts the way of batching and the epochs that are broken off, so that all meet all.
    grid_round = epoch // len(GRID)
    batching = BATCHINGS[(epoch + grid_round) % len(BATCHINGS)]
    settings = {"num_workers": num_workers, "pool": pool, "buffer_rows": 100, **batching}

    def readers(world: int) -> list[RaggedReader]:
        return [
            RaggedReader(snapshot, ["id", "tokens"], seed=1, rank=rank, world_size=world, **settings)
            for rank in range(world)
        ]

    seen: list[int] = []
    state = None
    if (epoch + grid_round // len(BATCHINGS)) % 3 == 2:
        states = []
        for reader in readers(1 + (epoch + grid_round) % 4):
            with reader.epoch(epoch) as batches:
                seen += [i for batch in itertools.islice(batches, 1 + epoch % 5) for i in ids_of(batch, rows)]
                states.append(batches.state())
        state = states[0]
        assert all(other == state for other in states)
    num_steps = set()
    for reader in readers(world_size):
        of_rank = [ids_of(batch, rows) for batch in (reader.epoch(epoch) if state is None else reader.resume(state))]
        num_steps.add(len(of_rank))
        seen += itertools.chain.from_iterable(of_rank)
    where = f"epoch {epoch}, {num_workers} workers, world size {world_size}, {settings}"
    assert len(num_steps) == 1, f"{where}: ranks took {num_steps} steps"
    assert sorted(seen) == sorted(rows), f"{where}: the rows delivered are not those of the table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000, help="epochs in all, spread over workers x world sizes")
    parser.add_argument("--pool", choices=["thread", "process"], default="thread")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        snapshot, rows = write_table(Path(folder))
        for epoch in range(arguments.epochs):
            world_size, num_workers = GRID[epoch % len(GRID)]
            read_epoch(snapshot, rows, epoch, num_workers, world_size, arguments.pool)
    print(f"{arguments.epochs} epochs of {NUM_ROWS} rows: every row exactly once in each")


if __name__ == "__main__":
    main()
