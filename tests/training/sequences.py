"""Sequences tables on disk, and jobs over them, for the tests of training and scoring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.model.history import HistoryBatch
from llm_spark.reader import Snapshot
from llm_spark.training.job import TrainingJob
from tests.model.histories import Row, batch_of, opening_of, row

SEQUENCES_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.string()),
        ("user_id", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("event_types", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),
        ("session_starts", pa.list_(pa.int32())),
        ("event_times", pa.list_(pa.int64())),
        ("first_target", pa.int32()),
        ("features", pa.list_(pa.float32())),
        ("outcome_places", pa.list_(pa.int32())),
        ("outcome_elapsed_seconds", pa.list_(pa.int64())),
        ("outcome_labels", pa.list_(pa.float32())),
        ("num_sessions_before", pa.int32()),
        ("first_event_time", pa.int64()),
        ("latest_event_time_before", pa.int64()),
        ("value_sum_before", pa.float64()),
    ]
)
SMALL_MODEL = ModelConfig(embedding_size=8, hidden_size=16, dense_size=16, memory_size=8, dropout=0.0)


def table_of(rows: list[Row]) -> pa.Table:
    """The rows as Spark would store them: a missing number is a null inside the list, features stand event by event."""

    def with_nulls(numbers: list[float]) -> list[float | None]:
        return [None if np.isnan(number) else float(number) for number in numbers]

    records = [
        {
            **opening_of(r),
            **r,
            "values": with_nulls(r["values"]),
            **{
                name: with_nulls([x for numbers in r.get(name, []) for x in numbers])
                for name in ("features", "outcome_labels")
            },
            "sequence_id": f"s{i}",
            "user_id": f"u{i}",
        }
        for i, r in enumerate(rows)
    ]
    return pa.Table.from_pylist(records, schema=SEQUENCES_SCHEMA)


def write_rows(folder: Path, name: str, rows: list[Row], row_group_size: int = 16) -> str:
    """One data file of these rows; returns its path."""
    path = folder / f"{name}.parquet"
    pq.write_table(table_of(rows), path, row_group_size=row_group_size)
    return str(path)


def cyclic_rows(num_rows: int, num_items: int, seed: int) -> list[Row]:
    """Users who step through the items in a fixed cycle from a random one on: the next item is certain given the last."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        first, lengths = int(rng.integers(num_items)), rng.integers(2, 5, size=2)
        path = [2 + (first + i) % num_items for i in range(int(lengths.sum()))]
        rows.append(row([path[: lengths[0]], path[lengths[0] :]]))
    return rows


def small_job(folder: Path, train_rows: list[Row], validation_rows: list[Row], **settings: Any) -> TrainingJob:
    """A job over these rows; `settings` are those of TrainConfig, or `num_tokens` and `model_config`."""
    num_tokens = settings.pop("num_tokens", 12)
    model_config = settings.pop("model_config", SMALL_MODEL)
    defaults = {"num_epochs": 2.0, "batch_rows": 8, "device": "cpu", "warmup_steps": 2, "timeout_seconds": 60}
    return TrainingJob(
        model_config=model_config,
        train_config=TrainConfig(**{**defaults, **settings}),
        training=Snapshot((write_rows(folder, "train", train_rows),)),
        validation=Snapshot((write_rows(folder, "validation", validation_rows),) if validation_rows else ()),
        num_tokens=num_tokens,
        num_event_types=4,
        artifact_path=str(folder / "model"),
        work_dir=str(folder / "work"),
        provenance={"vocabulary": 3},
    )


class InMemory:
    """The same batches each epoch."""

    def __init__(self, training: list[list[Row]], validation: list[list[Row]] = ()) -> None:
        self._training = [batch_of(rows) for rows in training]
        self._validation = [batch_of(rows) for rows in validation]

    def num_steps(self, epoch: int) -> int:
        return len(self._training)

    def training(self, epoch: int) -> InMemoryBatches:
        return InMemoryBatches(self._training, 0)

    def resume(self, state: dict[str, int]) -> InMemoryBatches:
        return InMemoryBatches(self._training, state["num_taken"])

    def validation(self) -> Iterator[HistoryBatch]:
        return iter(self._validation)


class InMemoryBatches:
    """The rest of a list of batches."""

    def __init__(self, batches: list[HistoryBatch], num_taken: int) -> None:
        self._batches, self._num_taken = batches, num_taken

    def __iter__(self) -> InMemoryBatches:
        return self

    def __next__(self) -> HistoryBatch:
        if self._num_taken == len(self._batches):
            raise StopIteration
        self._num_taken += 1
        return self._batches[self._num_taken - 1]

    def state(self) -> dict[str, int]:
        return {"num_taken": self._num_taken}
