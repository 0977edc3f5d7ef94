from __future__ import annotations

from pathlib import Path

import pytest

from llm_spark.training.job import Progress
from llm_spark.training.records import (
    FAILED,
    FINISHED,
    STOPPED,
    STUCK,
    ProgressWriter,
    RankRecord,
    RunFolder,
    blame,
)


def judged(*records: RankRecord | None) -> str:
    fault = blame(dict(enumerate(records)))
    assert fault is not None
    return fault.line


def test_a_run_in_which_every_rank_finished_has_no_fault() -> None:
    assert blame({0: RankRecord(0, FINISHED), 1: RankRecord(1, FINISHED)}) is None


def test_a_rank_without_a_last_word_fails_the_run_even_when_rank_0_finished() -> None:
    assert "rank 1 ended without a completion record" in judged(RankRecord(0, FINISHED), None)


def test_the_rank_that_raised_is_blamed_and_not_those_it_took_along() -> None:
    lost = RankRecord(0, FAILED, "lost contact", was_waiting=True)
    assert judged(lost, RankRecord(1, FAILED, "KeyError: 'x'"), None) == "rank 1 failed: KeyError: 'x'"


def test_a_killed_rank_is_told_with_the_settings_of_the_batchs_size_and_of_the_models() -> None:
    line = judged(None)
    for setting in ("train.accumulate", "train.batch_rows", "model.embedding_size", "model.hidden_size"):
        assert setting in line
    assert "sequences.max_items" in line


def test_the_killed_rank_is_blamed_and_not_those_that_were_stopped_for_it() -> None:
    stopped = RankRecord(0, STOPPED, "told to stop", was_waiting=True)
    assert "rank 1 ended without" in judged(stopped, None)


def test_the_rank_that_stood_still_is_blamed_and_not_those_that_waited_for_it() -> None:
    waited = RankRecord(0, STUCK, "waited for the other ranks", was_waiting=True)
    stuck = RankRecord(1, STUCK, "did not move")
    assert judged(waited, stuck) == "rank 1 stuck: did not move"
    assert judged(waited, RankRecord(1, STOPPED, "told to stop")) == "rank 1 stopped: told to stop"


def test_an_error_of_the_users_making_is_told_without_rank_or_log() -> None:
    by_user = RankRecord(1, FAILED, "nothing to learn: ...", is_user_error=True)
    fault = blame({0: RankRecord(0, FAILED, "RuntimeError: x"), 1: by_user})
    assert fault is not None
    assert fault.is_user_error
    assert fault.line == "nothing to learn: ..."


def test_the_exit_code_of_an_error_of_the_users_making_is_the_commands() -> None:
    damaged = RankRecord(1, FAILED, "the sequences are damaged", is_user_error=True, exit_code=3)
    fault = blame({0: RankRecord(0, FAILED, "lost contact", was_waiting=True), 1: damaged})
    assert fault is not None
    assert fault.exit_code == 3


@pytest.mark.parametrize("where", ["local", "memory"])
def test_records_are_read_back_as_they_were_written(tmp_path: Path, where: str) -> None:
    folder = RunFolder(str(tmp_path) if where == "local" else "memory://runs/1")
    assert folder.read_start(0) is None
    assert folder.read_end(0) is None
    folder.write_start(0)
    record = RankRecord(0, FINISHED, result={"num_steps": 3, "metrics": [{"value": 0.5}]})
    folder.write_end(record)
    assert folder.read_end(0) == record
    assert folder.read_start(0).rank == 0


def test_progress_survives_steps_of_validation_that_have_none(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    write = ProgressWriter(folder, interval_seconds=0.0)
    progress = Progress(step=1, num_steps=9, epoch=0, tokens_per_second=5.0, loss=2.5, seconds_left=1.0)
    write(progress)
    write(None)
    assert folder.read_progress() == (progress, 2)
