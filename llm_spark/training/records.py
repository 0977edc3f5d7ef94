"""What every rank writes down of itself, and what the launcher makes of it: the only account of success that counts.

TorchDistributor reports success when training failed, and returns rank 0's result when rank 1 was killed. So each
rank writes one record as it starts and one as it ends, each whole or not at all; a run has succeeded when every
rank's last record says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from llm_spark.errors import UserError
from llm_spark.files import read_file, write_file
from llm_spark.training.job import Progress

FINISHED = "finished"
FAILED = "failed"
"""The rank's own code raised."""
STUCK = "stuck"
"""The rank's own watchdog saw no step for the timeout."""
STOPPED = "stopped"
"""The rank was told to end, as happens to all when one has died."""


@dataclass(frozen=True)
class RankRecord:
    """How one rank ended."""

    rank: int
    status: str
    error: str = ""
    """One line."""
    is_user_error: bool = False
    exit_code: int = UserError.exit_code
    """Of the command, where the error is of the user's making."""
    was_waiting: bool = False
    """It stood in a collective operation, waiting for others: then the fault is another's."""
    result: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class RankStart:
    """A rank that has begun."""

    rank: int
    host: str
    pid: int
    parent_pid: int


class RunFolder:
    """The folder of one launch: a started and an ended record for each rank, and rank 0's progress."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write_start(self, rank: int) -> None:
        start = RankStart(rank, socket.gethostname(), os.getpid(), os.getppid())
        self._write(f"rank-{rank}.started.json", dataclasses.asdict(start))

    def read_start(self, rank: int) -> RankStart | None:
        content = self._read(f"rank-{rank}.started.json")
        return RankStart(**content) if content is not None else None

    def write_end(self, record: RankRecord) -> None:
        self._write(f"rank-{record.rank}.ended.json", dataclasses.asdict(record))

    def read_end(self, rank: int) -> RankRecord | None:
        content = self._read(f"rank-{rank}.ended.json")
        return RankRecord(**content) if content is not None else None

    def write_progress(self, progress: Progress | None, num_beats: int) -> None:
        values = dataclasses.asdict(progress) if progress is not None else None
        self._write("progress.json", {"progress": values, "num_beats": num_beats})

    def read_progress(self) -> tuple[Progress | None, int]:
        """The last progress, and a number that has grown whenever rank 0 has done anything."""
        content = self._read("progress.json") or {"progress": None, "num_beats": 0}
        values = content["progress"]
        return Progress(**values) if values is not None else None, content["num_beats"]

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_file(f"{self.path}/{name}", json.dumps(content).encode())

    def _read(self, name: str) -> dict[str, Any] | None:
        content = read_file(f"{self.path}/{name}")
        return json.loads(content) if content is not None else None


class ProgressWriter:
    """Rank 0's progress, written a few times a second at most."""

    def __init__(self, folder: RunFolder, interval_seconds: float = 0.3) -> None:
        self._folder, self._interval_seconds = folder, interval_seconds
        self._written_at = -interval_seconds
        self._num_beats = 0
        self._last: Progress | None = None

    def __call__(self, progress: Progress | None) -> None:
        self._num_beats += 1
        self._last = progress or self._last
        now = time.monotonic()
        if now - self._written_at >= self._interval_seconds:
            self._folder.write_progress(self._last, self._num_beats)
            self._written_at = now


@dataclass(frozen=True)
class Fault:
    """What broke a run, in one line."""

    line: str
    is_user_error: bool = False
    """The line says all there is to know; no log is needed."""
    exit_code: int = UserError.exit_code


def blame(records: dict[int, RankRecord | None]) -> Fault | None:
    """Which rank broke the run and how; None when every rank has finished.

    One failure drags the others down, so the order of suspicion matters: an error of the user's making, another error,
    a rank without a last word (killed), one that stood still by itself, and last those that only waited for the others
    or were told to stop.
    """
    ended = [record for record in records.values() if record is not None and record.status != FINISHED]
    silent = [str(rank) for rank, record in records.items() if record is None]
    if not ended and not silent:
        return None
    own = [record for record in ended if not record.was_waiting]
    for record in own:
        if record.is_user_error:
            return Fault(record.error, is_user_error=True, exit_code=record.exit_code)
    for record in own:
        if record.status == FAILED:
            return Fault(f"rank {record.rank} failed: {record.error}")
    if silent:
        who = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(silent)}"
        return Fault(
            f"{who} ended without a completion record: killed, or out of memory (raise train.accumulate, or lower train.batch_rows; "
            "where the model itself is too large, lower model.embedding_size, model.hidden_size or sequences.max_items)"
        )
    suspect = ([record for record in own if record.status == STUCK] or own or ended)[0]
    return Fault(f"rank {suspect.rank} {suspect.status}: {suspect.error}")
