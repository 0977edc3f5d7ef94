"""A `llm-spark serve-sql` process, and the clients that ask it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
from impala.dbapi import connect

ROOT = Path(__file__).parents[2]
BEELINE = Path(pyspark.__file__).parent / "bin" / "beeline"
START_SECONDS = 180


@dataclass
class Served:
    """A server that is ready, and what it printed to be so."""

    process: subprocess.Popen[str]
    port: int
    ready_line: str
    folder: Path
    """Its working directory."""

    def ask(self, query: str, user: str = "analyst", password: str = "any") -> list[tuple]:
        with self.cursor(user, password) as cursor:
            cursor.execute(query)
            return cursor.fetchall()

    @contextlib.contextmanager
    def cursor(self, user: str = "analyst", password: str = "any") -> Iterator[Any]:
        connection = connect("127.0.0.1", self.port, auth_mechanism="PLAIN", user=user, password=password, timeout=60)
        with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
            yield cursor

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def said(self) -> str:
        return (self.folder / "stderr.txt").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(warehouse: str, folder: Path, *overrides: str) -> Iterator[Served]:
    """Start it with `folder` as its working directory, and end it with the block."""
    port = free_port()
    small = ["spark.master=local[2]", "spark.driver_memory=1g", "spark.java_options=-XX:TieredStopAtLevel=1"]
    settings = [f"warehouse={warehouse}", f"serve.port={port}", *small, *overrides]
    command = [sys.executable, "-m", "llm_spark.cli", "serve-sql", *settings]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    folder.mkdir()
    with (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, bufsize=1
        )
    server = Served(process, port, "", folder)
    try:
        server.ready_line = _first_line(process)
        assert server.ready_line, server.said()[-3000:]
        yield server
    finally:
        process.kill()
        process.wait()


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if select.select([process.stdout], [], [], 1)[0]:
            return process.stdout.readline()
    return ""


def ask_beeline(url: str, query: str) -> list[str]:
    """The lines that Hive's own client prints for a query, as CSV with a header."""
    command = [str(BEELINE), "-u", url, "-n", "analyst", "--silent=true", "--outputformat=csv2", "-e", query]
    options = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    environment = dict(os.environ, JAVA_TOOL_OPTIONS="", SPARK_BEELINE_OPTS=options)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # It repeats its prompt before the first line.
    return done.stdout.strip().removeprefix(f"0: {url}> ").splitlines()
