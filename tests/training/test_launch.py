"""The launch over Spark's TorchDistributor: real processes, gloo on loopback, and ranks that go wrong.

Functions that the ranks run are made inside functions, so that they travel by value: the ranks cannot import the tests.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.sql import SparkSession

from llm_spark.config import TrainConfig
from llm_spark.errors import DataError, UserError
from llm_spark.model.artifact import load_artifact, read_manifest
from llm_spark.training import launch
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress, TrainingJob
from llm_spark.training.launch import run_ranks, train
from llm_spark.training.records import RunFolder
from tests.model.histories import batch_of, random_rows, row
from tests.training.sequences import cyclic_rows, small_job


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def run_ranked(
    spark: SparkSession, work_dir: Path, function: Callable, timeout_seconds: float = 60, num_ranks: int = 2
) -> list[Any]:
    (work_dir / "pids").mkdir(exist_ok=True)
    return run_ranks(
        spark,
        with_pid_noted(function, str(work_dir / "pids")),
        None,
        num_ranks=num_ranks,
        work_dir=str(work_dir / "work"),
        device="cpu",
        timeout_seconds=timeout_seconds,
    )


def with_pid_noted(function: Callable, folder: str) -> Callable:
    def run(argument: Any, ranks: Any, on_step: Any) -> dict:
        open(f"{folder}/{os.getpid()}", "w").close()
        return function(argument, ranks, on_step)

    return run


def assert_no_rank_is_left(work_dir: Path) -> None:
    pids = [int(path.name) for path in (work_dir / "pids").iterdir()]
    assert pids
    assert not [pid for pid in pids if is_running(pid)]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ranks_train_a_model_that_knows_the_next_item(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    heard: list[Progress] = []
    job = small_job(
        tmp_path, cyclic_rows(121, 10, seed=1), cyclic_rows(20, 10, seed=2), num_ranks=num_ranks, num_epochs=6.0,
        learning_rate=0.02,
    )  # fmt: skip
    result = train(spark, dataclasses.replace(job, on_progress=heard.append))
    loaded = load_artifact(result.artifact_path)
    contexts, targets = loaded.model.forward_states(batch_of(cyclic_rows(20, 10, seed=3)))
    assert (loaded.model.logits(contexts).argmax(dim=1) == targets).float().mean() > 0.9
    assert loaded.tables == {"vocabulary": 3}
    assert loaded.config["train"] == dataclasses.asdict(job.train_config)
    # The last step of each epoch has one row: of two ranks one has none then.
    assert result.num_steps == 6 * 16
    assert result.num_tokens == 6 * sum(len(one_row["tokens"]) for one_row in cyclic_rows(121, 10, seed=1))
    assert result.num_parameters == sum(p.numel() for p in loaded.model.parameters())
    assert result.best_recall == 1.0
    assert [p.num_steps for p in heard] == [96] * len(heard)
    assert heard
    assert {m.name for m in result.metrics} >= {"train_loss", "validation_loss", "validation_recall_at_20"}
    assert [path.name for path in Path(job.work_dir).iterdir()] == ["checkpoints"]
    assert result.resumed_at_step is None
    assert list(temporary.glob("torchelastic_*")) == []
    # What the gate asks for later.
    of_ranks = read_manifest(result.artifact_path)[0]["ranks"]
    assert of_ranks == [{"rank": rank, "status": "finished", "num_steps": 96} for rank in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_take_the_steps_of_one_over_the_same_global_batches(
    spark: SparkSession, tmp_path: Path, num_ranks: int
) -> None:
    rows = random_rows(24, 12, 4, seed=1)

    def losses_of_share(argument: Any, ranks: Any, on_step: Any) -> dict:
        from llm_spark.model.network import NextEventModel
        from llm_spark.training.loop import Trainer
        from tests.training.sequences import SMALL_MODEL, InMemory

        shares = InMemory([rows[i : i + 8][ranks.rank :: ranks.world_size] for i in (0, 8, 16)])
        torch.manual_seed(1)
        model = NextEventModel(SMALL_MODEL, 12, 4)
        config = TrainConfig(num_epochs=3.0, device="cpu", warmup_steps=2, learning_rate=0.01)
        return {"losses": Trainer(model, config, shares, ranks, torch.ones(12), on_step).fit().losses}

    alone = losses_of_share(None, Ranks(0, 1, torch.device("cpu")), lambda progress: None)["losses"]
    for record in run_ranked(spark, tmp_path, with_tests_importable(losses_of_share), num_ranks=num_ranks):
        assert record.result["losses"] == pytest.approx(alone, rel=1e-4)


def with_tests_importable(function: Callable) -> Callable:
    root = str(Path(__file__).resolve().parents[2])

    def run(argument: Any, ranks: Any, on_step: Any) -> dict:

        sys.path.insert(0, root)
        return function(argument, ranks, on_step)

    return run


def test_a_rank_that_raises_fails_the_run_with_its_error_and_prints_to_the_log_alone(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_in_rank_1(argument: Any, ranks: Any, on_step: Any) -> dict:
        print("chatter")
        if ranks.rank == 1:
            raise KeyError("no such thing\nand more")
        while True:
            ranks.sum_over_ranks(torch.ones(1))

    with pytest.raises(UserError, match=r"training failed: rank 1 failed: KeyError: .*no such thing") as error:
        run_ranked(spark, tmp_path, fail_in_rank_1)
    assert "\n" not in str(error.value)
    log = Path(str(error.value).split("(log: ")[1].rstrip(")"))
    assert "chatter" in log.read_text()
    assert "Traceback" in log.read_text()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert_no_rank_is_left(tmp_path)


@pytest.mark.parametrize("rank_0", ["waits", "has finished"])
def test_a_killed_rank_fails_the_run(spark: SparkSession, tmp_path: Path, rank_0: str) -> None:
    flag = str(tmp_path / "rank-0-is-done")
    Path(flag).unlink(missing_ok=True)

    def kill_rank_1(argument: Any, ranks: Any, on_step: Any) -> dict:
        import os
        import signal
        import time

        if ranks.rank == 0 and rank_0 == "has finished":
            open(flag, "w").close()
            return {}
        while ranks.rank == 1 and rank_0 == "has finished" and not os.path.exists(flag):
            time.sleep(0.01)
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.sum_over_ranks(torch.ones(1))
        return {}

    with pytest.raises(UserError, match="training failed: rank 1 ended without a completion record"):
        run_ranked(spark, tmp_path, kill_rank_1)
    assert_no_rank_is_left(tmp_path)


# torchrun gives a frozen rank half a minute before it kills it.
@pytest.mark.parametrize("how", ["sleeps", pytest.param("is frozen", marks=pytest.mark.slow)])
def test_a_rank_that_stands_still_fails_the_run_in_bounded_time(spark: SparkSession, tmp_path: Path, how: str) -> None:
    def hang_in_rank_1(argument: Any, ranks: Any, on_step: Any) -> dict:
        import os
        import signal
        import threading

        ranks.sum_over_ranks(torch.ones(1))
        if ranks.rank == 1:
            if how == "is frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()
        ranks.sum_over_ranks(torch.ones(1))
        return {}

    with pytest.raises(UserError, match=r"training failed: rank 1 (stuck|stopped|ended without)"):
        run_ranked(spark, tmp_path, hang_in_rank_1, timeout_seconds=4)
    assert_no_rank_is_left(tmp_path)


def kill_rank_when(job: TrainingJob, rank: int, is_time: Callable[[], bool]) -> threading.Thread:
    """SIGKILL one rank of the launch that is about to begin, once `is_time`."""

    def started() -> Path | None:
        return next(iter(Path(job.work_dir).glob(f"run-*/rank-{rank}.started.json")), None)

    def kill() -> None:
        while (record := started()) is None or not is_time():
            time.sleep(0.001)
        os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_killed_rank_leaves_the_last_good_checkpoint_and_the_same_call_goes_on_from_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "killed").mkdir()
    reference, job = (
        small_job(
            tmp_path / name, cyclic_rows(120, 10, seed=1), cyclic_rows(20, 10, seed=2), num_ranks=2, num_epochs=6.0,
            checkpoint_seconds=0.0,
        )
        for name in ("reference", "killed")
    )  # fmt: skip
    expected = train(spark, reference)
    checkpoints = Path(job.checkpoint_path)
    num_before = 0

    def whole() -> list[str]:
        return sorted(path.parent.name for path in checkpoints.glob("step-*/manifest.json"))

    def newest_whole() -> str:
        return max(whole(), default="")

    def in_a_checkpoint() -> bool:
        return max((p.parent.name for p in checkpoints.glob("step-*/*.safetensors*")), default="") > newest_whole() > ""

    for rank, is_time in (
        (1, lambda: True),  # as it begins
        (1, lambda: int(newest_whole().removeprefix("step-") or 0) >= 3),  # between steps, or in one
        (0, in_a_checkpoint),
    ):
        killer = kill_rank_when(job, rank, is_time)
        # One that is told to stop while it still loads torch has no last word either.
        with pytest.raises(
            UserError, match=rf"training failed: ranks? [01, ]*{rank}[01, ]* ended without a completion"
        ) as error:
            train(spark, job)
        killer.join(timeout=60)
        for folder in Path(job.work_dir).glob("run-*"):
            shutil.rmtree(folder)
        num_now = int(newest_whole().removeprefix("step-") or 0)
        assert num_now >= num_before, "the last good checkpoint is kept"
        assert (f"keeps the checkpoint of step {num_now}: the same command goes on" in str(error.value)) == (
            num_now > 0
        )
        num_before = num_now
        assert not (Path(job.artifact_path) / "manifest.json").exists()
    result = train(spark, job)
    assert result.resumed_at_step == num_before > 0
    assert (result.num_steps, result.num_tokens) == (expected.num_steps, expected.num_tokens)
    assert result.final_loss == pytest.approx(expected.final_loss, rel=1e-4)
    ours, theirs = (load_artifact(r.artifact_path).model.state_dict() for r in (result, expected))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_model_begins_with_the_weights_of_its_parent_whose_vocabulary_was_smaller(
    spark: SparkSession, tmp_path: Path
) -> None:
    for name in ("parent", "child", "alone"):
        (tmp_path / name).mkdir()
    known = small_job(tmp_path / "parent", cyclic_rows(120, 10, seed=1), [], num_epochs=8.0, learning_rate=0.02)
    parent = train(spark, known)
    # Two more items than before, in the middle of nowhere: the old cycle is as it was.
    rows = [*cyclic_rows(60, 10, seed=4), *([row([[12, 13, 12, 13]])] * 4)]
    grown, alone = (
        small_job(tmp_path / name, rows, [], num_tokens=14, num_epochs=1.0, learning_rate=0.001)
        for name in ("child", "alone")
    )
    child = train(spark, dataclasses.replace(grown, parent_path=parent.artifact_path))
    assert child.final_loss < 0.5 * train(spark, alone).final_loss
    loaded = load_artifact(child.artifact_path).model
    contexts, targets = loaded.forward_states(batch_of(cyclic_rows(20, 10, seed=3)))
    assert (loaded.logits(contexts).argmax(dim=1) == targets).float().mean() > 0.9


def test_an_error_of_the_users_making_comes_as_it_is_and_leaves_nothing(spark: SparkSession, tmp_path: Path) -> None:
    job = small_job(tmp_path, [row([[2]]), row([[3]])], [], num_ranks=2)
    with pytest.raises(UserError, match=r"^nothing to learn: no sequence") as error:
        train(spark, job)
    assert "\n" not in str(error.value)
    assert [path.name for path in Path(job.work_dir).iterdir()] == ["checkpoints"]
    assert not Path(job.artifact_path).exists()


def test_data_that_a_rank_refuses_are_refused_by_the_run(spark: SparkSession, tmp_path: Path) -> None:
    damaged = row([[2, 3, 4]])
    damaged["tokens"] = [2, 99, 3]
    job = small_job(tmp_path, [*cyclic_rows(8, 10, seed=1), damaged], [])
    with pytest.raises(DataError, match="the sequences hold token 99") as error:
        train(spark, job)
    assert error.value.exit_code == 3


def test_a_folder_that_holds_a_model_is_not_written_over(spark: SparkSession, tmp_path: Path) -> None:
    job = small_job(tmp_path, cyclic_rows(8, 10, seed=1), [])
    Path(job.artifact_path).mkdir()
    (Path(job.artifact_path) / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="holds a model already"):
        train(spark, job)


def test_ranks_that_do_not_start_are_not_waited_for_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "START_SECONDS", 0.0)
    folder = RunFolder(str(tmp_path))
    folder.write_start(1)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        reason = launch._follow(thread, folder, 2, 1_000.0, None, list, room="they lack room")
    finally:
        stop.set()
        thread.join()
    assert reason == "1 of 2 ranks started in 0 seconds: they lack room"


def test_a_barrier_stage_that_fails_with_ranks_begun_is_not_waited_for_and_one_that_fails_before_is_tried_again(
    tmp_path: Path,
) -> None:
    folder = RunFolder(str(tmp_path))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    # A task of the first attempt is lost before any rank has begun, one of the second after the first has.
    told = iter([[(0, 0)], [(0, 1)], [(1, 0)], [(1, 0)], [(1, 1)]])
    asked: list[list[tuple[int, int]]] = []

    def attempts() -> list[tuple[int, int]]:
        asked.append(next(told))
        if len(asked) == 3:
            folder.write_start(0)
        return asked[-1]

    try:
        assert launch._follow(thread, folder, 2, 1_000.0, None, attempts, room="") == ""
    finally:
        stop.set()
        thread.join()
    assert asked[-1] == [(1, 1)]
