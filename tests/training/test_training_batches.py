from __future__ import annotations

import dataclasses
import math
import statistics
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from llm_spark.errors import DataError, UserError
from llm_spark.reader import ReaderError, Snapshot, compat, storage
from llm_spark.training.batches import ReaderSource, in_settings, measure
from llm_spark.training.distributed import Ranks
from tests.model.histories import batch_of, random_rows, row, with_features
from tests.training.sequences import SMALL_MODEL, small_job

ONE_RANK = Ranks(0, 1, torch.device("cpu"))


def test_every_training_row_arrives_once_an_epoch_as_it_was_stored(tmp_path: Path) -> None:
    rows = random_rows(37, 12, 4, seed=1)
    source = ReaderSource(small_job(tmp_path, rows, []), ONE_RANK)
    found = []
    for batch in source.training(epoch=0):
        for begin, end, first_target in zip(
            batch.row_offsets[:-1].tolist(), batch.row_offsets[1:].tolist(), batch.first_target_B.tolist(), strict=True
        ):
            starts = [s - begin for s in batch.session_offsets.tolist() if begin <= s < end]
            values = [None if np.isnan(v) else round(v, 4) for v in batch.values_N[begin:end].tolist()]
            times = batch.event_times_N[begin:end].tolist()
            types = batch.event_types_N[begin:end].tolist()
            found.append((batch.tokens_N[begin:end].tolist(), types, values, times, starts, first_target))
    expected = [
        (
            r["tokens"],
            r["event_types"],
            [None if np.isnan(v) else round(float(np.float32(v)), 4) for v in r["values"]],
            r["event_times"],
            r["session_starts"],
            r["first_target"],
        )
        for r in rows
    ]
    assert sorted(map(repr, found)) == sorted(repr(tuple(map(plain, e))) for e in expected)


def plain(value: object) -> object:
    """numpy's numbers as Python's."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def test_statistics_count_targets_and_measure_values() -> None:
    rows = [row([[2, 3, 3], [5, 1]], first_target=2), row([[4, 4]])]
    for one_row, values in zip(rows, ([1.0, float("nan"), 4.0, 7.0, float("nan")], [2.0, float("inf")]), strict=True):
        one_row["values"] = values
    measured = measure(iter([batch_of(rows[:1]), batch_of(rows[1:])]), 7, ONE_RANK, SMALL_MODEL)
    # targets: 3, 5, 1 of the first row, 4 of the second
    assert measured.target_counts_V.tolist() == [0, 1, 0, 1, 1, 1, 0]
    assert measured.value_mean == pytest.approx(statistics.mean([1, 4, 7, 2]))
    assert measured.value_std == pytest.approx(statistics.pstdev([1, 4, 7, 2]))


def test_statistics_of_gaps_and_features_leave_missing_ones_out() -> None:
    rows = with_features([row([[2, 3, 4]]), row([[5, 6]])], 1, seed=1)
    for one_row, times, numbers in zip(
        rows, ([0, 9, 108], [50, 57]), ([[3.0], [math.nan], [5.0]], [[10.0], [math.inf]]), strict=True
    ):
        one_row["event_times"], one_row["features"] = times, numbers
    config = dataclasses.replace(SMALL_MODEL, features=["quantity"])
    measured = measure(iter([batch_of(rows[:1]), batch_of(rows[1:])]), 7, ONE_RANK, config)
    gaps, quantities = [math.log(10), math.log(100), math.log(8)], [3, 5, 10]
    assert measured.number_mean_K.tolist() == pytest.approx([statistics.mean(gaps), statistics.mean(quantities)])
    assert measured.number_std_K.tolist() == pytest.approx([statistics.pstdev(gaps), statistics.pstdev(quantities)])


def test_features_arrive_with_their_events(tmp_path: Path) -> None:
    rows = with_features(random_rows(20, 12, 4, seed=1), 2, seed=2)
    job = small_job(tmp_path, rows, [], model_config=dataclasses.replace(SMALL_MODEL, features=["quantity", "price"]))
    found, expected = {}, {}
    for batch in ReaderSource(job, ONE_RANK).training(epoch=0):
        for begin, end in zip(batch.row_offsets[:-1].tolist(), batch.row_offsets[1:].tolist(), strict=True):
            found[tuple(batch.tokens_N[begin:end].tolist())] = batch.features_NF[begin:end].numpy()
    for one_row in rows:
        expected[tuple(int(token) for token in one_row["tokens"])] = np.array(one_row["features"], dtype=np.float32)
    assert found.keys() == expected.keys()
    for tokens, numbers in expected.items():
        np.testing.assert_array_equal(found[tokens], numbers)


def test_equal_or_absent_values_are_standardised_by_one() -> None:
    assert measure(iter([batch_of([row([[2, 3]])])]), 5, ONE_RANK, SMALL_MODEL).value_std == 1.0
    assert measure(iter([batch_of([row([[2, 3]], value=4.0)])]), 5, ONE_RANK, SMALL_MODEL).value_std == 1.0


@pytest.mark.parametrize(
    ("rows", "num_tokens", "complaint"),
    [
        ([row([[2], [2]])], 3, "vocabulary holds 1 items"),
        ([row([[1]])], 2, "vocabulary holds 0 items"),
        ([row([[2]]), row([[3]])], 4, "no sequence .* has an item after its first event"),
        ([row([[2, 1, 1]])], 4, "no sequence .* has an item after its first event"),
    ],
)
def test_nothing_to_learn_is_said_in_one_line(rows: list, num_tokens: int, complaint: str) -> None:
    with pytest.raises(UserError, match=f"nothing to learn: .*{complaint}") as error:
        measure(iter([batch_of(rows)]), num_tokens, ONE_RANK, SMALL_MODEL)
    assert "\n" not in str(error.value)


def test_no_training_rows_is_said_in_one_line(tmp_path: Path) -> None:
    job = small_job(tmp_path, [row([[2, 3]])], [])
    with pytest.raises(UserError, match="nothing to learn: the training split holds no rows"):
        ReaderSource(dataclasses.replace(job, training=Snapshot(())), ONE_RANK)


def test_fewer_rows_than_ranks_is_said_in_one_line(tmp_path: Path) -> None:
    job = small_job(tmp_path, random_rows(2, 12, 4, seed=1), [])
    with pytest.raises(UserError, match=r"2 sequences for 3 ranks: give train\.num_ranks=2"):
        ReaderSource(job, Ranks(0, 3, torch.device("cpu")))


@pytest.mark.parametrize(
    ("column", "code", "complaint"),
    [("tokens", 12, "token 12"), ("tokens", 0, "token 0"), ("event_types", 9, "event type 9")],
)
def test_a_code_outside_its_vocabulary_is_named(tmp_path: Path, column: str, code: int, complaint: str) -> None:
    broken = row([[2, 3, 4]])
    broken[column] = [2, code, 3]
    source = ReaderSource(small_job(tmp_path, [row([[2, 3]]), broken], []), ONE_RANK)
    with pytest.raises(DataError, match=complaint):
        list(source.training(epoch=0))


class HangingFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Local files, none of which can be opened once the gate is shut."""

    protocol = "hanging"
    cachable = False
    gate = threading.Event()
    gate.set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("hanging://")

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self.gate.wait()
        return open(path, mode)


def test_storage_that_hangs_is_told_by_the_reader_before_the_watchdog_and_with_trains_remedy(tmp_path: Path) -> None:
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    job = small_job(tmp_path, random_rows(9, 12, 4, seed=1), [], timeout_seconds=1)
    source = ReaderSource(
        dataclasses.replace(job, training=Snapshot((f"hanging://{job.training.files[0]}",))), ONE_RANK
    )
    HangingFileSystem.gate.clear()
    try:
        with pytest.raises(ReaderError, match=r"nothing came for 0\.8 s") as error:
            list(source.training(epoch=0))
    finally:
        HangingFileSystem.gate.set()
    told = in_settings(str(error.value))
    assert told.endswith("check the storage, or raise train.timeout_seconds")


def test_the_readers_other_remedies_are_told_as_settings_of_train_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise OSError("connection reset")

    with pytest.raises(ReaderError) as error:
        storage.retried("a file", failing, num_attempts=1)
    assert in_settings(str(error.value)).endswith("connection reset; check the storage, then run this again")
    source = ReaderSource(small_job(tmp_path, random_rows(9, 12, 4, seed=1), []), ONE_RANK)
    monkeypatch.setattr(compat, "dead_workers", lambda pool: ["worker thread 0 ended"])
    with pytest.raises(ReaderError) as error:
        list(source.training(epoch=0))
    assert in_settings(str(error.value)).endswith("lower train.reader_workers, then run this again")
