"""The lock beside a table in a local folder, among real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_spark.errors import UserError
from llm_spark.tables.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from llm_spark.tables.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with process:
        yield process


def test_one_process_at_a_time_holds_the_lock_and_the_other_is_told_who_does(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".models.lock"
    with held_elsewhere(path) as holder:
        with (
            pytest.raises(UserError, match=rf"held for 0.2 s by process {holder.pid} on .* since .* UTC"),
            locked(path, wait_seconds=0.2),
        ):
            pytest.fail("two hold it")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        # A process that was killed holds nothing, whatever its file says.
        with locked(path, wait_seconds=0):
            assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_who_waits_gets_the_lock_once_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / ".nightly.lock"
    waits = threading.Event()

    def second() -> str:
        waits.set()
        with locked(path, wait_seconds=60):
            return path.read_text()

    with ThreadPoolExecutor() as threads, held_elsewhere(path) as holder:
        waiting = threads.submit(second)
        assert waits.wait(60)
        assert holder.stdin is not None
        holder.stdin.close()
        assert waiting.result(60).startswith(f"process {os.getpid()} on ")


def test_the_lock_is_given_back_also_where_the_work_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    with locked(tmp_path / "lock", wait_seconds=0):
        pass
