"""Small ragged tables for the reader's tests, and what a reader delivers of them as plain Python values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_spark.reader import Batch, Ragged, RaggedReader

Row = dict[str, Any]


def ragged_rows(num_rows: int, seed: int = 0, first_id: int = 0, longest: int = 8) -> list[Row]:
    """Rows with an id, a ragged list of tokens, and the id as text."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, num_rows)
    return [
        {"id": first_id + i, "tokens": random.integers(2, 99, length).tolist(), "name": f"row {first_id + i}"}
        for i, length in enumerate(lengths)
    ]


SCHEMA = pa.schema([("id", pa.int64()), ("tokens", pa.list_(pa.int32())), ("name", pa.string())])


def write_files(folder: Path, rows: Sequence[Row], num_files: int, rows_in_group: int) -> list[str]:
    """The rows as Parquet files of nearly equal size."""
    cuts = [len(rows) * i // num_files for i in range(num_files + 1)]
    paths = []
    for i in range(num_files):
        path = str(folder / f"part-{i}.parquet")
        table = pa.Table.from_pylist(list(rows[cuts[i] : cuts[i + 1]]), schema=SCHEMA)
        pq.write_table(table, path, row_group_size=rows_in_group)
        paths.append(path)
    return paths


def rows_of(batch: Batch) -> list[Row]:
    """The rows of a batch as Python values."""
    columns = {name: _values_of(batch[name]) for name in batch}
    return [{name: values[i] for name, values in columns.items()} for i in range(batch.num_rows)]


def batches_of(batches: Iterable[Batch]) -> list[list[Row]]:
    return [rows_of(batch) for batch in batches]


def epoch_ids(reader: RaggedReader, epoch: int) -> list[list[int]]:
    """The ids of each batch."""
    return [batch["id"].tolist() for batch in reader.epoch(epoch)]  # type: ignore[union-attr]


def _values_of(column: Any) -> list[Any]:
    if isinstance(column, Ragged):
        values, offsets = column.values.tolist(), column.offsets.tolist()
        return [values[start:stop] for start, stop in itertools.pairwise(offsets)]
    return column.tolist()
