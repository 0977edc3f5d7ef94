"""`llm-spark train` as a process of its own, to be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

POLL_SECONDS = 0.002
ROOT = Path(__file__).resolve().parents[2]
SMALL_JVM = ["spark.java_options=-XX:TieredStopAtLevel=1", "spark.driver_memory=1g", "spark.shuffle_partitions=2"]


def descendants(ancestor: int) -> list[int]:
    """All processes below `ancestor`, whatever session they have moved to."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue

    def is_below(pid: int) -> bool:
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        return pid == ancestor

    return [pid for pid in parents if pid != ancestor and is_below(pid)]


class TrainingVictim:
    """The train stage on a warehouse whose sequences are there."""

    def __init__(self, config_file: Path, warehouse: Path, *overrides: str) -> None:
        self.warehouse = warehouse
        self.log = warehouse.parent / f"{warehouse.name}.log"
        command = [sys.executable, "-m", "llm_spark.cli", "train", "--config", str(config_file)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"warehouse={warehouse}", *SMALL_JVM, *overrides],
                stderr=log, stdout=log, start_new_session=True, cwd=ROOT,
            )  # fmt: skip

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill_when(self, is_time: Callable[[], bool], and_ranks: bool = True) -> bool:
        """SIGKILL the driver, and at the same time its JVM and its ranks or not, once `is_time`; False where it had ended before."""
        while not is_time():
            if not self.is_alive():
                return False
            time.sleep(POLL_SECONDS)
        victims = [*(descendants(self._process.pid) if and_ranks else []), self._process.pid]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return self._process.wait() == -signal.SIGKILL

    def wait(self) -> int:
        return self._process.wait()


def untrained_copy(trained: Path, target: Path) -> None:
    """A warehouse as it stood before the train stage."""
    shutil.copytree(trained, target)
    for folder in ("models", "staging", *(f"tables/{name}" for name in ("models", "training_metrics"))):
        shutil.rmtree(target / folder, ignore_errors=True)


def weights(warehouse: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Of every whole model in a warehouse, by its id."""
    return {
        path.parent.name: safetensors.torch.load_file(path.parent / "weights.safetensors")
        for path in sorted(warehouse.glob("models/*/manifest.json"))
    }


def are_equal(ours: dict[str, dict[str, torch.Tensor]], theirs: dict[str, dict[str, torch.Tensor]]) -> bool:
    """To the bit."""
    return ours.keys() == theirs.keys() and all(
        ours[model].keys() == theirs[model].keys()
        and all(torch.equal(tensor, theirs[model][name]) for name, tensor in ours[model].items())
        for model in ours
    )
