"""The pool of worker processes: what it leaves behind, and what Ctrl-C does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_spark.reader import Epoch, RaggedReader
from tests.reader.tables import ragged_rows, write_files

NUM_ROWS = 400


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_files(tmp_path_factory.mktemp("table"), ragged_rows(NUM_ROWS), 2, 10)


def epoch_of(table: list[str]) -> Epoch:
    """With a buffer so small that most is still to be read at the first batch."""
    return RaggedReader(table, ["id"], batch_rows=9, buffer_rows=20, pool="process").epoch(0)


def workers_of(epoch: Epoch) -> list[Any]:
    return epoch._delivery._pool._workers


def test_a_reader_dropped_in_mid_epoch_leaves_no_process_no_socket_and_no_open_file(table: list[str]) -> None:
    this = psutil.Process()

    def held() -> tuple[set[int], int, int]:
        return {child.pid for child in this.children()}, this.num_fds(), len(this.net_connections())

    before = held()
    epoch = epoch_of(table)
    next(epoch)
    processes, num_fds, num_sockets = held()
    assert len(processes) == len(before[0]) + 2
    assert num_fds > before[1]
    assert num_sockets > before[2]
    del epoch
    assert held() == before


def test_what_a_process_is_started_from_is_gone_once_it_runs(table: list[str]) -> None:
    with epoch_of(table) as epoch:
        assert [worker.runnable.exists() for worker in workers_of(epoch)] == [False, False]


def test_an_epoch_survives_an_interrupt_that_its_processes_get(table: list[str]) -> None:
    with epoch_of(table) as epoch:
        num_rows = next(epoch).num_rows
        for worker in workers_of(epoch):
            worker.send_signal(signal.SIGINT)
        assert num_rows + sum(batch.num_rows for batch in epoch) == NUM_ROWS


_READS_AND_WAITS = """
import sys, time
from llm_spark.reader import RaggedReader
for batch in RaggedReader(sys.argv[1:], ["id"], batch_rows=9, buffer_rows=20, pool="process").epoch(0):
    print("reading", flush=True)
    time.sleep(600)
"""


def test_ctrl_c_ends_the_reader_and_its_processes_with_one_traceback(table: list[str]) -> None:
    command = [sys.executable, "-c", _READS_AND_WAITS, *table]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as reading:
        try:
            assert reading.stdout is not None
            assert reading.stdout.readline() == "reading\n"
            workers = psutil.Process(reading.pid).children()
            os.killpg(reading.pid, signal.SIGINT)  # as a terminal does
            _, told = reading.communicate(timeout=30)
        finally:
            reading.kill()
    assert reading.returncode == -signal.SIGINT
    assert (told.count("Traceback"), told.count("KeyboardInterrupt")) == (1, 1)
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)
