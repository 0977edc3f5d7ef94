"""A launch that fails before any rank begins: what refused it is told, not that ranks were killed. No JVM, a stand-in for Spark."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_spark.errors import DataError, UserError
from llm_spark.training import launch
from llm_spark.training.launch import run_ranks
from llm_spark.training.records import FAILED, RankRecord, RunFolder

CALLED = "An error occurred while calling o153.collectToPython.\n"
AT_THE_SCHEDULER = "\tat org.apache.spark.scheduler.DAGScheduler.runJob(DAGScheduler.scala:1063)\n"
DYNAMIC_ALLOCATION = (
    f"{CALLED}: org.apache.spark.scheduler.BarrierJobRunWithDynamicAllocationException: [SPARK-24942]: Barrier execution mode does not "
    f"support dynamic resource allocation for now.\n{AT_THE_SCHEDULER}"
)
NO_TORCH = (
    f"{CALLED}: org.apache.spark.SparkException: Job aborted due to stage failure: Could not recover from a failed barrier ResultStage.\n"
    "org.apache.spark.api.python.PythonException: [PYTHON_EXCEPTION] An exception was thrown from the Python worker: "
    'Traceback (most recent call last):\n  File "worker.py", line 3602, in main\n    func()\n'
    f"ModuleNotFoundError: No module named 'torch'\n SQLSTATE: 38000\n{AT_THE_SCHEDULER}"
)
OTHER_JVM = f"{CALLED}: org.apache.spark.SparkException: Job 3 cancelled as part of\ncancellation of all jobs\n{AT_THE_SCHEDULER}"
ENCRYPTED = "\nThis cluster has TLS encryption enabled;\nhowever, TorchDistributor does not support\ndata encryption in transit.\n"
GPUS = "TorchDistributor 'num_processes' value (3) must be a multiple of 'spark.task.resource.gpu.amount' (2) value."
SEE_LOG = "TorchDistributor failed during training.View stdout logs for detailed error message."
OF_A_RANK = (
    "Traceback (most recent call last):\n  File 'train.py', line 7\nModuleNotFoundError: No module named 'ghost'\n"
)
OF_TORCHRUN = "Traceback (most recent call last):\n  File 'api.py'\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"


def spark_of(master: str) -> Any:
    tracker = SimpleNamespace(getJobIdsForGroup=lambda group: [], getJobInfo=None)
    context = SimpleNamespace(
        master=master,
        setJobGroup=lambda *args, **kwargs: None,
        cancelJobGroup=lambda group: None,
        getConf=dict,
        statusTracker=lambda: tracker,
    )
    return SimpleNamespace(sparkContext=context)


def distributor(error: Exception | None = None, in_run: bool = True, printed: str = "", record: Any = None) -> type:
    """A TorchDistributor that raises `error` as it is made or as it runs, after a rank has left `record`."""

    class Distributor:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if error is not None and not in_run:
                raise error

        def run(self, function: Any, of_rank: Any, argument: Any, settings: Any) -> None:
            print(printed)
            if record is not None:
                folder = RunFolder(settings.run_folder)
                folder.write_start(record.rank)
                folder.write_end(record)
            if error is not None:
                raise error

    return Distributor


def failure(tmp_path: Path, master: str = "spark://host:7077") -> UserError:
    with pytest.raises(UserError) as raised:
        run_ranks(
            spark_of(master), print, None, num_ranks=1, work_dir=str(tmp_path), device="cpu", timeout_seconds=60,
            what_is_kept=lambda: "; checkpoints",
        )  # fmt: skip
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize(
    ("text", "in_run", "told"),
    [
        (DYNAMIC_ALLOCATION, True, "set spark.dynamicAllocation.enabled=false"),
        (NO_TORCH, True, "no rank began: ModuleNotFoundError: No module named 'torch' ("),
        (OTHER_JVM, True, "no rank began: org.apache.spark.SparkException: Job 3 cancelled as part of cancellation of all jobs ("),
        (ENCRYPTED, True, "TLS encryption enabled; however, TorchDistributor does not support data encryption in transit. ("),
        (GPUS, False, "must be a multiple of 'spark.task.resource.gpu.amount' (2) value. ("),
        ("", False, "no rank began: RuntimeError ("),
    ],
)  # fmt: skip
def test_what_kept_every_rank_from_beginning_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, in_run: bool, told: str
) -> None:
    refusal = RuntimeError(text)
    monkeypatch.setattr(launch, "TorchDistributor", distributor(refusal, in_run))
    error = failure(tmp_path)
    assert str(error).startswith("training failed: no rank began: ")
    assert told in str(error)
    assert error.__cause__ is refusal
    assert "RuntimeError" in Path(str(error).split("(log: ")[1].rstrip(")")).read_text()


@pytest.mark.parametrize(
    ("printed", "told"),
    [(OF_A_RANK + OF_TORCHRUN, "No module named 'ghost' ("), (OF_TORCHRUN, "rank 0 ended without a completion record")],
)
def test_beside_the_driver_the_log_says_what_kept_the_ranks_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, told: str
) -> None:
    monkeypatch.setattr(launch, "TorchDistributor", distributor(RuntimeError(SEE_LOG), printed=printed))
    assert told in str(failure(tmp_path, "local[2]"))


def test_what_ranks_that_began_say_of_themselves_counts_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RankRecord(0, FAILED, "KeyError: 'x'")
    monkeypatch.setattr(launch, "TorchDistributor", distributor(RuntimeError("a task failed"), record=record))
    assert str(failure(tmp_path)).startswith("training failed: rank 0 failed: KeyError: 'x'; checkpoints (log: ")


@pytest.mark.parametrize(("code", "kind"), [(1, UserError), (3, DataError)])
def test_an_error_of_the_users_making_keeps_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[UserError]
) -> None:
    record = RankRecord(0, FAILED, "bring more events", is_user_error=True, exit_code=code)
    monkeypatch.setattr(launch, "TorchDistributor", distributor(RuntimeError("a task failed"), record=record))
    error = failure(tmp_path)
    assert type(error) is kind
    assert (str(error), error.exit_code) == ("bring more events", code)


@pytest.mark.parametrize(("master", "told"), [("local[2]", "beside the driver"), ("spark://host:7077", "task slot")])
def test_ranks_that_do_not_start_are_told_what_they_lack_where_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: str, told: str
) -> None:
    cancelled = threading.Event()
    waiting = type("Waiting", (distributor(),), {"run": lambda *args: cancelled.wait(60)})
    monkeypatch.setattr(launch, "TorchDistributor", waiting)
    monkeypatch.setattr(launch, "START_SECONDS", 0.0)
    monkeypatch.setattr(launch, "_cancel", lambda *args: cancelled.set())
    error = str(failure(tmp_path, master))
    assert error.startswith("training failed: 0 of 1 ranks started in 0 seconds: ")
    assert told in error
