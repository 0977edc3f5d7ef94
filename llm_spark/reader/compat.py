"""Petastorm's worker pools on today's stack: the one module that knows how Petastorm 0.12.1 and 0.13.1 are made inside.

Petastorm is unmaintained. What it imports from pyarrow and distutils was removed since; for as long as its import runs,
and no longer, empty stand-ins fill those places. sys.modules is put back as it was, so a program that imported pyarrow
before, or that probes for `pyarrow.filesystem` after, sees no difference.

    stand-in                              the line that needs it (the same in 0.12.1 and 0.13.1)
    pyarrow.filesystem.LocalFileSystem    petastorm/utils.py:23, by way of petastorm/__init__.py:16
    pyarrow.hdfs.HadoopFileSystem         petastorm/hdfs/namenode.py:24, a base class at :212
    distutils.version.LooseVersion        petastorm/hdfs/namenode.py:19 (gone in Python 3.12, a warning in 3.11)
    exec_in_new_process, during start     petastorm/workers_pool/process_pool.py:196 starts a child that imports
                                          Petastorm without the stand-ins above
    _wait_for_workers_to_start            the same, :207: gives a child 20 s, too few on a busy machine, even a dead one

The race of 0.13.1: thread_pool.py:186 reads "all items are processed" and :188 then "the ventilator is done"; between
the two its thread may hand out the last items, and `get_results` reports the end with them in flight. We hand items out
from the thread that calls `get_results`, without a ventilator, so neither fact can change between the two lines. (And
`delivery.py`, which knows what is outstanding, takes an early end for an error.)
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow  # noqa: F401 - the real one first, lest a stand-in be all there is of it

from .errors import ReadError

_STAND_INS = {
    "pyarrow.filesystem": "LocalFileSystem",
    "pyarrow.hdfs": "HadoopFileSystem",
    "distutils": "version",
    "distutils.version": "LooseVersion",
}
_lock = threading.Lock()
Check = Callable[[], None]


@contextmanager
def _stand_ins() -> Iterator[None]:
    added = [name for name in _STAND_INS if name not in sys.modules]
    for name in added:
        stand_in = ModuleType(name, "stand-in while petastorm is imported")
        setattr(stand_in, _STAND_INS[name], type(_STAND_INS[name], (), {}))
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


with _stand_ins():
    from petastorm.workers_pool import EmptyResultError, process_pool
    from petastorm.workers_pool.process_pool import ProcessPool
    from petastorm.workers_pool.thread_pool import ThreadPool
    from petastorm.workers_pool.worker_base import WorkerBase

__all__ = ["EmptyResultError", "WorkerBase", "dead_workers", "start_pool", "stop_pool"]

# Our sys.path first (this package may not be installed), then this module, then the pool's own bootstrap. Ctrl-C is the
# parent's to answer, whose end the pool's bootstrap watches; the file may hold credentials.
_CHILD = """
import os, pickle, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
with open(sys.argv[1], "rb") as runnable:
    sys.path[:] = pickle.load(runnable)
    __import__(pickle.load(runnable))
    function, args = pickle.load(runnable)
os.unlink(sys.argv[1])
function(*args)
"""


def _exec_in_new_process(function: Callable[..., None], *args: Any) -> subprocess.Popen[bytes]:
    with tempfile.NamedTemporaryFile(suffix=".runnable", delete=False) as runnable:
        for part in (sys.path, __name__, (function, args)):
            pickle.dump(part, runnable)
    worker = subprocess.Popen([sys.executable, "-c", _CHILD, runnable.name])
    worker.runnable = Path(runnable.name)  # type: ignore[attr-defined]
    return worker


def start_pool(
    kind: str, num_workers: int, worker: type, args: Any, serializer: Any, check: Check, seconds: float
) -> Any:
    """Start a "thread" or "process" pool whose waits call `check` ten times a second: it raises if waiting is in vain.

    Raises ReadError when a worker process dies in starting, or takes longer than `seconds`.
    """
    with _lock:
        petastorm_exec, process_pool.exec_in_new_process = process_pool.exec_in_new_process, _exec_in_new_process
        # The caller bounds what is outstanding; workers would only spin at a bounded results queue.
        pool = ProcessPool(num_workers, serializer) if kind == "process" else ThreadPool(num_workers, 1 << 30)
        pool._wait_for_workers_to_start = lambda: _await_start(pool, time.monotonic() + seconds)
        try:
            pool.start(worker, args)
        except BaseException:
            stop_pool(pool)
            raise
        finally:
            process_pool.exec_in_new_process = petastorm_exec
    if kind == "process":
        pool._results_receiver_poller = SimpleNamespace(poll=_checked(pool._results_receiver_poller.poll, check))
    else:
        for queue in getattr(pool, "_results_queues", None) or [pool._results_queue]:  # 0.13.1 has one for each worker
            queue.get = _checked(queue.get, check)
    return pool


def _await_start(pool: Any, deadline: float) -> None:
    for _ in pool._workers:
        while not pool._results_receiver.poll(100):
            if (dead := dead_workers(pool)) or time.monotonic() > deadline:
                why = dead[0] if dead else "worker processes take too long"
                raise ReadError(f"{why} in starting: use pool='thread'")
        pool._results_receiver.recv_pyobj()


def _checked(wait: Callable[..., Any], check: Check) -> Callable[..., Any]:
    def checked_wait(*args: Any, **kwargs: Any) -> Any:
        check()
        return wait(*args, **kwargs)

    return checked_wait


def dead_workers(pool: Any) -> list[str]:
    """Say, for each worker that ended though nobody stopped the pool, which one and how."""
    if isinstance(pool, ThreadPool):
        return [f"worker thread {i} ended" for i, worker in enumerate(pool._workers) if not worker.is_alive()]
    codes = enumerate(worker.poll() for worker in pool._workers)
    return [f"worker process {i} ended with exit code {code}" for i, code in codes if code is not None]


def stop_pool(pool: Any, grace_seconds: float = 1.0) -> None:
    """Free every thread, process, socket and file of the pool, in about `grace_seconds` at most.

    Petastorm's `join` waits without a limit for a worker that hangs in a read. Here such a process is killed, and such a
    thread (a daemon, told to stop) is left to end with its read.
    """
    deadline = time.monotonic() + grace_seconds
    if isinstance(pool, ThreadPool):
        pool.stop()
        for thread in pool._workers:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return
    for process in pool._workers:
        while process.poll() is None and time.monotonic() < deadline:
            pool.stop()  # repeatedly: a worker that subscribes late misses what was published before
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        process.kill()
        process.wait()
        process.runnable.unlink(missing_ok=True)
    for socket in filter(None, (pool._ventilator_send, pool._control_sender, pool._results_receiver)):
        socket.close(linger=0)
    pool._context.destroy(linger=0)
