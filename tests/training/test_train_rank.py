"""One rank's way from the job to the artifact."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_spark.errors import UserError
from llm_spark.model.artifact import load_artifact, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.training import batches, rank
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.rank import train_rank
from tests.model.histories import Row, random_rows, row, with_features
from tests.training.sequences import SMALL_MODEL, small_job

ONE_RANK = Ranks(0, 1, torch.device("cpu"))


def test_counting_the_training_data_gives_a_sign_of_life_for_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "STATISTICS_BATCH_ROWS", 5)
    job = small_job(tmp_path, random_rows(40, 12, 4, seed=1), [], num_epochs=1.0)
    heard: list[Progress | None] = []
    train_rank(job, ONE_RANK, heard.append)
    num_before_the_first_step = next(i for i, progress in enumerate(heard) if progress is not None)
    assert num_before_the_first_step >= 40 / 5


def allocate_too_much(*args: Any) -> NextEventModel:
    torch.empty(2**60, dtype=torch.uint8)
    raise AssertionError("there is memory for that")


def test_a_model_too_large_for_the_memory_is_told_with_the_settings_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank, "NextEventModel", allocate_too_much)
    job = small_job(tmp_path, random_rows(9, 12, 4, seed=1), [])
    with pytest.raises(UserError, match=r"^out of memory on rank 0: .*lower model\.embedding_size \(8\)") as error:
        train_rank(job, ONE_RANK, lambda progress: None)
    assert "model.hidden_size (16) or sequences.max_items" in str(error.value)
    assert "\n" not in str(error.value)


def numbered(sessions: list[list[int]], values: list[float], quantities: list[float], seconds: list[int]) -> Row:
    """A history whose events have these values, quantities and seconds after the event before."""
    made = with_features([row(sessions)], 1, seed=1)[0]
    times = [1_600_000_000 + sum(seconds[: i + 1]) for i in range(len(seconds))]
    return {**made, "values": values, "features": [[quantity] for quantity in quantities], "event_times": times}


def test_numbers_are_standardised_by_the_training_split_whatever_validation_holds(tmp_path: Path) -> None:
    training = [
        numbered([[2, 3], [4]], [1.0, 4.0, 10.0], [3.0, 5.0, 7.0], [0, 9, 999]),
        numbered([[5, 6]], [2.0, 8.0], [1.0, math.nan], [0, 99]),
    ]
    validation = [numbered([[2, 3, 4]], [1e6, 2e6, 9e6], [500.0, 700.0, 900.0], [0, 10**7, 10**7])] * 3
    config = dataclasses.replace(SMALL_MODEL, features=["quantity"])
    job = small_job(tmp_path, training, validation, num_epochs=1.0, model_config=config)
    result = train_rank(job, ONE_RANK, lambda progress: None)
    assert any(metric["name"] == "validation_loss" for metric in result["metrics"]), "validation was read"
    save_manifest(job.artifact_path, result["files"], [])
    model = load_artifact(job.artifact_path).model
    values, gaps, quantities = [1, 4, 10, 2, 8], [math.log(10), math.log(1000), math.log(100)], [3, 5, 7, 1]
    assert model.value_mean.item() == pytest.approx(statistics.mean(values))
    assert model.value_std.item() == pytest.approx(statistics.pstdev(values))
    assert model.number_input.mean_K.tolist() == pytest.approx([statistics.mean(gaps), statistics.mean(quantities)])
    assert model.number_input.std_K.tolist() == pytest.approx([statistics.pstdev(gaps), statistics.pstdev(quantities)])
