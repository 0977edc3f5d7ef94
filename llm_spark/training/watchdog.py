"""A rank's watchdog: a thread that ends the process when it stands still, is told to stop, or has lost its parent.

The main thread may hang in a collective operation or a read that no Python signal handler can interrupt. The thread
sees SIGTERM through the wake-up descriptor, which the interpreter's C handler writes to at once, and leaves a
record before it ends the process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

from llm_spark.training.records import STOPPED, STUCK

CHECK_SECONDS = 0.5
RECORD_SECONDS = 10.0
"""How long one thread may take to write the last record while another waits to end the process."""


class Watchdog:
    """Call `beat` whenever something was done; without a beat for `timeout_seconds` the process ends."""

    def __init__(self, timeout_seconds: float, report: Callable[[str, str, bool], None]) -> None:
        """`report` gets status, error line and whether the rank was waiting for others. Must be made in the main thread."""
        self._timeout_seconds, self._report = timeout_seconds, report
        self._last_beat = time.monotonic()
        self._what = "starting"
        self._waiting = False
        self._ended = threading.Lock()
        self._recorded = threading.Event()
        self._parent_pid = os.getppid()
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, what: str) -> None:
        """Something was done; `what` comes now."""
        self._last_beat = time.monotonic()
        self._what = what

    def waiting(self, waiting: bool) -> None:
        """Say whether the rank waits for others."""
        self._waiting = waiting

    def end(self, write_record: Callable[[], None]) -> None:
        """Write the last record of the process, or wait for it where another thread has begun to: who returns may end the process."""
        if self._ended.acquire(blocking=False):
            write_record()
            self._recorded.set()
        else:
            self._recorded.wait(RECORD_SECONDS)

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._read_end], [], [], CHECK_SECONDS)
            if ready and signal.SIGTERM in os.read(self._read_end, 64):
                self._end(STOPPED, f"told to stop while {self._what}")
            if os.getppid() != self._parent_pid:
                self._end(STOPPED, f"the launcher is gone while {self._what}")
            if time.monotonic() - self._last_beat > self._timeout_seconds:
                waited = "waited for the other ranks" if self._waiting else "did not move"
                self._end(
                    STUCK, f"{waited} for {self._timeout_seconds:g} seconds while {self._what} (train.timeout_seconds)"
                )

    def _end(self, status: str, error: str) -> None:
        self.end(lambda: self._report(status, error, self._waiting))
        os._exit(1)
