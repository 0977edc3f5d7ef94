"""Starts the ranks through Spark's TorchDistributor, and believes nobody but their records.

On a local master all ranks run beside the driver; elsewhere they are the tasks of one barrier stage. Either way the
run ends: every rank has a watchdog, and the launcher cancels what shows no sign of life for longer than that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from llm_spark.errors import DataError, UserError
from llm_spark.files import locate, read_file
from llm_spark.model.artifact import MANIFEST, save_manifest
from llm_spark.training.checkpoint import CheckpointFolder
from llm_spark.training.job import Metric, Progress, TrainingJob, TrainingResult
from llm_spark.training.rank import RankFunction, RankSettings, run_rank, train_rank
from llm_spark.training.records import RankRecord, RunFolder, blame

__all__ = ["Metric", "Progress", "TrainingJob", "TrainingResult", "train"]

POLL_SECONDS = 0.3
GRACE_SECONDS = 60.0
"""Beyond the ranks' own timeout: their watchdogs speak first, and say more."""
Attempts = list[tuple[int, int]]
"""Of each Spark stage of a run: which attempt it is in, and how many tasks of that have failed."""
NUM_LOG_LINES = 60
"""Of the log, that go with the error as its cause: `--debug` shows them even where the log is gone."""
START_SECONDS = 300.0
"""All ranks must have started by then: a cluster without room for them would be waited for silently."""
REMEDIES = {
    "SPARK-24942": "the ranks are the tasks of one barrier stage, which Spark refuses under dynamic allocation [SPARK-24942]: "
    "set spark.dynamicAllocation.enabled=false for training",
}
"""What to say in place of Spark's own words, by a sign in them."""
MAX_CAUSE = 300
"""Characters of an error that go into the line."""
ROOM_HERE = "they start beside the driver and load torch at the same time; give train.num_ranks a lower number, or this machine less to do"
ROOM_ON_A_CLUSTER = (
    "all need a free Spark task slot at the same time; give train.num_ranks a lower number, or the job more executors"
)


def train(spark: SparkSession, job: TrainingJob) -> TrainingResult:
    """Train `job` on its `num_ranks` ranks and leave a whole artifact at `job.artifact_path`.

    The manifest is written here, after every rank has recorded success: a run that failed anywhere leaves no model, but
    its checkpoints in `job.work_dir`, from the newest of which the same call goes on.
    Raises UserError in one line for what the user can put right and for a rank that failed, was killed or stood
    still.
    """
    started = time.monotonic()
    if read_file(f"{job.artifact_path}/{MANIFEST}") is not None:
        raise UserError(f"'{job.artifact_path}' holds a model already: give the new model another id")
    config = job.train_config
    launch_id = uuid.uuid4().hex[:12]
    checkpoints = CheckpointFolder(job.checkpoint_path, {}, owner=launch_id)
    checkpoints.claim()
    records = run_ranks(
        spark,
        train_rank,
        dataclasses.replace(job, on_progress=None, launch_id=launch_id),
        num_ranks=config.num_ranks,
        work_dir=job.work_dir,
        device=config.device,
        timeout_seconds=config.timeout_seconds,
        on_progress=job.on_progress,
        what_is_kept=lambda: _goes_on(checkpoints),
    )
    result = records[0].result
    ranks = [{"rank": r.rank, "status": r.status, "num_steps": r.result["num_steps"]} for r in records]
    save_manifest(job.artifact_path, result["files"], ranks)
    return TrainingResult(
        artifact_path=job.artifact_path,
        metrics=[Metric(**metric) for metric in result["metrics"]],
        num_steps=result["num_steps"],
        num_tokens=result["num_tokens"],
        num_parameters=result["num_parameters"],
        num_ranks=config.num_ranks,
        final_loss=result["final_loss"],
        best_step=result["best_step"],
        best_recall=result["best_recall"],
        resumed_at_step=result["resumed_at_step"],
        seconds=time.monotonic() - started,
        model_summary=result["model_summary"],
    )


def run_ranks(
    spark: SparkSession,
    function: RankFunction,
    argument: Any,
    *,
    num_ranks: int,
    work_dir: str,
    device: str,
    timeout_seconds: float,
    on_progress: Callable[[Progress], None] | None = None,
    grace_seconds: float = GRACE_SECONDS,
    what_is_kept: Callable[[], str] = lambda: "",
) -> list[RankRecord]:
    """Run `function(argument, ranks, on_step)` on `num_ranks` processes; returns their records when all have succeeded.

    Otherwise raises UserError naming the rank and its error, or what Spark said where no rank began, and `what_is_kept`; the run's folder,
    with its log, is then kept.
    """
    is_local = (spark.sparkContext.master or "").split("[")[0] == "local"
    folder = RunFolder(f"{work_dir.rstrip('/')}/run-{uuid.uuid4().hex[:12]}")
    settings = RankSettings(folder.path, device, timeout_seconds, _num_threads(spark, is_local, num_ranks))
    use_gpu = _wants_spark_gpus(spark, is_local, device)
    log_path = _log_path(folder)
    job_group = f"train {folder.path}"
    failures: list[Exception] = []

    def run() -> None:
        try:
            spark.sparkContext.setJobGroup(job_group, "llm_spark training", interruptOnCancel=True)
            TorchDistributor(num_ranks, local_mode=is_local, use_gpu=use_gpu).run(
                run_rank, function, argument, settings
            )
        except Exception as error:
            # Of ranks that began their records say more; what those print is in the log.
            if not _num_started(folder, num_ranks):
                failures.append(error)
                traceback.print_exc()

    thread = threading.Thread(target=run, name="torch distributor", daemon=True)
    silence = ""
    try:
        with _output_to(log_path):
            thread.start()
            attempts = functools.partial(_attempts, spark, job_group)
            room = ROOM_HERE if is_local else ROOM_ON_A_CLUSTER
            silence = _follow(thread, folder, num_ranks, timeout_seconds + grace_seconds, on_progress, attempts, room)
    finally:
        if thread.is_alive():
            _cancel(spark, folder, num_ranks, is_local, job_group)
            thread.join(timeout=grace_seconds)
    records = {rank: folder.read_end(rank) for rank in range(num_ranks)}
    fault = blame(records)
    if fault is None or fault.is_user_error:
        filesystem, name = locate(folder.path)
        filesystem.rm(name, recursive=True)
    if fault is None:
        return [record for record in records.values() if record is not None]
    if fault.is_user_error:
        raise (DataError if fault.exit_code == DataError.exit_code else UserError)(fault.line)
    printed = Path(log_path).read_text(encoding="utf-8")
    if failures and not silence:
        why = _telling(failures[0], printed) or fault.line
        raise UserError(f"training failed: no rank began: {why} (log: {log_path})") from failures[0]
    log_tail = "".join(printed.splitlines(keepends=True)[-NUM_LOG_LINES:])
    line = f"training failed: {silence or fault.line}{what_is_kept()} (log: {log_path})"
    raise UserError(line) from RuntimeError(log_tail)


def _follow(
    thread: threading.Thread,
    folder: RunFolder,
    num_ranks: int,
    silence_seconds: float,
    on_progress: Callable[[Progress], None] | None,
    attempts: Callable[[], Attempts],
    room: str,
) -> str:
    """Wait for the run and pass on its progress; returns why the wait was given up, or nothing when the run has ended or lost a rank.

    `room` says what ranks that do not start lack.

    Once a rank has begun, no further attempt of Spark's can succeed (see `run_rank`), and where a machine is gone Spark would wait without
    end for as many free slots as there were before. An attempt that failed before is Spark's to repeat.
    """
    seen: tuple[int, int] = (0, 0)
    begun_in = attempts()
    seen_at = time.monotonic()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        progress, num_beats = folder.read_progress()
        num_started = _num_started(folder, num_ranks)
        if (num_beats, num_started) != seen:
            seen, seen_at = (num_beats, num_started), time.monotonic()
            if progress is not None and on_progress is not None:
                on_progress(progress)
        silent_seconds = time.monotonic() - seen_at
        if num_started == 0:
            begun_in = attempts()
        elif attempts() != begun_in:
            return ""
        if num_started < num_ranks and silent_seconds > START_SECONDS:
            return f"{num_started} of {num_ranks} ranks started in {START_SECONDS:g} seconds: {room}"
        if silent_seconds > silence_seconds:
            return f"no rank gave a sign of life for {silence_seconds:g} seconds"
    return ""


def _num_started(folder: RunFolder, num_ranks: int) -> int:
    return sum(folder.read_start(rank) is not None for rank in range(num_ranks))


def _goes_on(checkpoints: CheckpointFolder) -> str:
    """What is kept of a run that failed, and what for."""
    kept = checkpoints.describe()
    return f"{kept}: the same command goes on from there" if kept else ""


def _telling(error: Exception, printed: str) -> str:
    """One line of what kept the ranks from beginning: of Python's trace the error, of the JVM's what stands before its trace.

    Empty where the ranks ended before they said anything.
    """
    text = str(error)
    if "View stdout logs" in text:
        text = printed
    for sign, remedy in REMEDIES.items():
        if sign in text:
            return remedy
    _, _, trace = text.partition("Traceback (most recent call last):")
    lines = [line for line in (trace or text).splitlines() if line.strip()]
    if trace:
        said = next((line for line in lines if not line[0].isspace()), "")
        if said.startswith("torch.distributed.elastic."):  # of torchrun, which does not know either
            return ""
    else:
        before_trace = itertools.takewhile(lambda line: not line.startswith("\tat "), lines)
        said = " ".join(line.strip() for line in before_trace if not line.startswith("An error occurred while calling"))
    return said.removeprefix(": ")[:MAX_CAUSE] or type(error).__name__


def _attempts(spark: SparkSession, job_group: str) -> Attempts:
    tracker = spark.sparkContext.statusTracker()
    jobs = filter(None, map(tracker.getJobInfo, tracker.getJobIdsForGroup(job_group)))
    stages = filter(None, (tracker.getStageInfo(stage_id) for job in jobs for stage_id in job.stageIds))
    return [(stage.currentAttemptId, stage.numFailedTasks) for stage in stages]


def _cancel(spark: SparkSession, folder: RunFolder, num_ranks: int, is_local: bool, job_group: str) -> None:
    """End ranks that did not end by themselves."""
    if not is_local:
        spark.sparkContext.cancelJobGroup(job_group)
        return
    for rank in range(num_ranks):
        start = folder.read_start(rank)
        if start is not None and folder.read_end(rank) is None:
            for pid in (start.pid, start.parent_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _num_threads(spark: SparkSession, is_local: bool, num_ranks: int) -> int:
    """This machine's cores shared among the ranks; on a cluster, the cores that Spark gives a task."""
    if is_local:
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, num_cores // num_ranks)
    return int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))


def _wants_spark_gpus(spark: SparkSession, is_local: bool, device: str) -> bool:
    """Whether Spark hands out the GPUs. Beside a local driver the ranks find them by themselves."""
    if is_local or device == "cpu":
        return False
    amount = int(spark.sparkContext.getConf().get("spark.task.resource.gpu.amount", "0"))
    if device == "cuda" and amount == 0:
        raise UserError(
            "train.device is 'cuda' and spark.task.resource.gpu.amount is not set: "
            "set it to 1, with a discovery script, or give train.device=cpu"
        )
    return amount > 0


def _log_path(folder: RunFolder) -> str:
    """A file beside the records; where those lie on no local file system, in this machine's temporary folder."""
    filesystem, name = locate(folder.path)
    if "file" not in filesystem.protocol:
        return str(Path(tempfile.mkdtemp(prefix="llm_spark-")) / "launch.log")
    filesystem.makedirs(name, exist_ok=True)
    return f"{name}/launch.log"


class _ByThread:
    """A standard stream in which the threads that live already write as ever, and what later ones write goes to `log`."""

    def __init__(self, original: TextIO, log: TextIO) -> None:
        self._original, self._log = original, log
        self._earlier = {thread.ident for thread in threading.enumerate()}

    def write(self, text: str) -> int:
        return self._stream().write(text)

    def flush(self) -> None:
        self._stream().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def _stream(self) -> TextIO:
        return self._original if threading.get_ident() in self._earlier else self._log


@contextlib.contextmanager
def _output_to(path: str) -> Iterator[None]:
    """Send what the ranks print to a file.

    TorchDistributor copies it all, from threads of its own, to the driver's standard output and error, where results
    and progress belong.
    """
    logger = logging.getLogger("TorchDistributor")
    propagated = logger.propagate
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    try:
        with (
            open(path, "w", encoding="utf-8") as log,
            contextlib.redirect_stdout(_ByThread(sys.stdout, log)),
            contextlib.redirect_stderr(_ByThread(sys.stderr, log)),
        ):
            yield
    finally:
        logger.propagate = propagated
