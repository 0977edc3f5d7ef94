"""A rank's watchdog, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import os, select, signal, sys, threading
from pathlib import Path
from llm_spark.training.watchdog import Watchdog

record = Path(sys.argv[1])

def seen():
    # The watchdog has read of the signal when nothing is left in the pipe.
    while select.select([watchdog._read_end], [], [], 0)[0]:
        pass
"""
MAIN_WRITES = """
def write_slowly():
    os.kill(os.getpid(), signal.SIGTERM)
    seen()
    for _ in range(10):
        os.sched_yield()
        threading.Event().wait(0.02)
    record.write_text("main")

watchdog = Watchdog(60, lambda *_: record.write_text("watchdog"))
watchdog.end(write_slowly)
os._exit(1)
"""
WATCHDOG_WRITES = """
begun = threading.Event()

def report(status, error, was_waiting):
    begun.set()
    for _ in range(10):
        os.sched_yield()
        threading.Event().wait(0.02)
    record.write_text("watchdog")

watchdog = Watchdog(60, report)
os.kill(os.getpid(), signal.SIGTERM)
begun.wait()
watchdog.end(lambda: record.write_text("main"))
os._exit(1)
"""


@pytest.mark.parametrize(("program", "writer"), [(MAIN_WRITES, "main"), (WATCHDOG_WRITES, "watchdog")])
def test_no_thread_ends_the_process_while_another_writes_its_last_record(
    tmp_path: Path, program: str, writer: str
) -> None:
    record = tmp_path / "record"
    ended = subprocess.run([sys.executable, "-c", COMMON + program, str(record)], timeout=60, check=False)
    assert ended.returncode == 1
    assert record.read_text() == writer
