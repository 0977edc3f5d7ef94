"""A Spark standalone cluster on loopback, each part a process of its own: a master, workers, and drivers that spark-submit starts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType

import pyspark

from llm_spark.spark import delta_jars
from tests.killing import descendants

ROOT = Path(__file__).resolve().parents[2]
SPARK = Path(pyspark.__file__).parent / "bin"
POLL_SECONDS = 0.01
START_SECONDS = 60.0
END_SECONDS = 20.0
# A JVM that lives for a minute does not earn what the second compiler costs.
SHORT_LIVED = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:-UsePerfData"
_LOOPBACK = "127.0.0.1"
_SETTINGS = {
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    "spark.driver.memory": "1g",
    "spark.driver.host": _LOOPBACK,
    "spark.driver.bindAddress": _LOOPBACK,
    "spark.driver.extraJavaOptions": SHORT_LIVED,
    "spark.executor.memory": "700m",
    "spark.executor.extraJavaOptions": SHORT_LIVED,
    # One file, written on as it comes.
    "spark.eventLog.enabled": "true",
    "spark.eventLog.rolling.enabled": "false",
    "spark.eventLog.compress": "false",
}
_TASK = re.compile(r"(Running|Finished) task \S+ in stage (\d+)\.")


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + START_SECONDS
    while not is_so():
        assert time.monotonic() < until, f"not within {START_SECONDS:g} s: {what}"
        time.sleep(POLL_SECONDS)


class Followed:
    """A file that grows, read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def new_lines(self) -> list[str]:
        """Whole lines written since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._at += len(whole) + 1
        return whole.decode(errors="replace").splitlines()


class Spawned:
    """A process with its output in a file."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        """Stop it and whatever it has started."""
        below = descendants(self.pid) if self.is_alive() else []
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Driver(Spawned):
    """What spark-submit runs."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str], events: Path) -> None:
        super().__init__(command, log, environment)
        self._events = events
        self._followed: dict[Path, Followed] = {}
        self._scopes: dict[int, set[str]] = {}

    def stages_with(self, scope: str) -> set[int]:
        """Ids of the Spark stages in which an operator of this name runs, of all jobs begun so far, from Spark's event log."""
        for log in self._events.iterdir():
            for line in self._followed.setdefault(log, Followed(log)).new_lines():
                if "SparkListenerJobStart" in line:
                    for stage in json.loads(line)["Stage Infos"]:
                        scopes = {data.get("Scope", "") for data in stage["RDD Info"]}
                        self._scopes.setdefault(stage["Stage ID"], set()).update(scopes)
        return {stage_id for stage_id, scopes in self._scopes.items() if any(scope in text for text in scopes)}


class Worker(Spawned):
    """A worker of one core, and the executor that it has started."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str], folder: Path) -> None:
        super().__init__(command, log, environment)
        self._folder = folder
        self._followed: dict[Path, Followed] = {}
        self._stage_ids: dict[Path, int | None] = {}
        self._frozen: list[int] = []

    def is_running(self, stage_ids: Collection[int]) -> bool:
        """Whether a task of one of these stages of the newest application is at work on its executor, as the executor's own log tells.

        The log does not tell of the end of a task that could not fetch a shuffle. On one core the next one's beginning does.
        """
        logs = sorted(self._folder.glob("app-*/*/stderr"))
        for log in logs:
            for line in self._followed.setdefault(log, Followed(log)).new_lines():
                if (told := _TASK.search(line)) is not None:
                    self._stage_ids[log] = int(told[2]) if told[1] == "Running" else None
        return bool(logs) and self._stage_ids.get(logs[-1]) in stage_ids

    def runs(self, pid: int) -> bool:
        """Whether it has started this process."""
        return pid in descendants(self.pid)

    def freeze(self) -> None:
        """Stop the clock of it and of all that it has started, so that what is seen of it stays so."""
        self._frozen = []
        while new := {self.pid, *descendants(self.pid)}.difference(self._frozen):
            self._frozen += new
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def lose(self) -> None:
        """SIGKILL it, frozen, with all that it has started, as if its machine were gone."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class StandaloneCluster:
    """Ended with all its processes when the block is left."""

    def __init__(self, folder: Path, num_workers: int = 2) -> None:
        self.folder = folder
        self._environment = {
            **os.environ,
            "PYSPARK_PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            # Where web pages are bound too.
            "SPARK_LOCAL_IP": _LOOPBACK,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": SHORT_LIVED,
            "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",
            # What a killed executor leaves is removed with the folder.
            "SPARK_LOCAL_DIRS": str(folder / "local"),
        }
        self._num_workers = num_workers
        self._spawned: list[Spawned] = []
        self.workers: list[Worker] = []
        self.url = ""

    def __enter__(self) -> StandaloneCluster:
        try:
            command = self._class("master.Master", "--port", "0", "--webui-port", "0")
            master = Spawned(command, self.folder / "master.log", self._environment)
            self._spawned.append(master)
            wait_until(lambda: "New state: ALIVE" in master.printed() or not master.is_alive(), "a master")
            found = re.search(r"spark://[\w.]+:\d+", master.printed())
            assert found is not None, master.printed()
            self.url = found[0]
            self._master = master
            for _ in range(self._num_workers):
                self.add_worker()
            self.wait_for_workers(self._num_workers)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spawned in reversed(self._spawned):
            spawned.end()

    def add_worker(self) -> Worker:
        number = len(self.workers)
        folder = self.folder / f"work-{number}"
        size = ["--cores", "1", "--memory", "1g"]
        command = self._class(
            *("worker.Worker", "--port", "0", "--webui-port", "0", *size, "--work-dir", str(folder), self.url)
        )
        worker = Worker(command, self.folder / f"worker-{number}.log", self._environment, folder)
        self._spawned.append(worker)
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, num: int) -> None:
        wait_until(lambda: self._master.printed().count("Registering worker") >= num, f"{num} workers")

    def submit(self, *program: str) -> Driver:
        """`spark-submit --deploy-mode client` of a Python program with its arguments, with the settings of conf/spark-submit.conf."""
        folder = self.folder / f"driver-{len(self._spawned)}"
        (folder / "events").mkdir(parents=True)
        # The JARs at hand in place of resolving the package at each start.
        given = (ROOT / "conf" / "spark-submit.conf").read_text().splitlines()
        kept = [line for line in given if line and not line.startswith(("#", "spark.jars.packages"))]
        (folder / "spark.conf").write_text("\n".join(kept) + "\n")
        settings = _SETTINGS | {"spark.eventLog.dir": (folder / "events").as_uri()}
        command = [
            *(str(SPARK / "spark-submit"), "--master", self.url, "--deploy-mode", "client"),
            *("--properties-file", str(folder / "spark.conf"), "--jars", ",".join(delta_jars())),
            *(word for name, value in settings.items() for word in ("--conf", f"{name}={value}")),
            *program,
        ]
        driver = Driver(command, folder / "driver.log", self._environment, folder / "events")
        self._spawned.append(driver)
        return driver

    def _class(self, name: str, *arguments: str) -> list[str]:
        main = f"org.apache.spark.deploy.{name}"
        return [str(SPARK / "spark-class"), main, "--host", _LOOPBACK, *arguments]
