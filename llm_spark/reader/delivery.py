"""From the schedule to the slabs: keeps the workers busy within a memory bound, and puts what arrives back in order.

At most `max_rows_held` rows are asked for and not yet delivered (one slab may need more; then what it needs). Results
arrive in any order and wait for their slab, so timing and the number of workers change nothing in what is delivered.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from . import compat
from .errors import ReadError
from .schedule import Request, Schedule, Slab
from .worker import ResultSerializer, RowGroupWorker, WorkerArgs


class Delivery:
    """The running workers of one epoch on one rank.

    Args:
        schedule: what to read and to join.
        locate: the file, the row group in it and its rows, of a row group of the snapshot.
        worker_args: passed to the workers.
        pool: "thread" or "process".
        num_workers: threads or processes.
        max_rows_held: see above.
        stall_seconds: fail when no result came for this long.
    """

    def __init__(
        self,
        schedule: Schedule,
        locate: Callable[[int], tuple[int, int, int]],
        worker_args: WorkerArgs,
        pool: str,
        num_workers: int,
        max_rows_held: int,
        stall_seconds: float,
    ) -> None:
        self._slabs, self._requests = schedule.slabs(), schedule.requests()
        self._locate, self._paths = locate, worker_args.files.paths
        self._max_rows_held, self._stall_seconds = max_rows_held, stall_seconds
        self._next_request: Request | None = next(self._requests, None)
        self._outstanding: dict[int, Request] = {}
        self._parts: dict[tuple[int, int], pa.RecordBatch] = {}
        self._num_rows_held = 0
        self._wait_began = time.monotonic()
        self._pool: Any = None
        if self._next_request is None:
            return
        # The pool holds this check in turn; a weak one lets an abandoned reader be freed by its count of references.
        weak_self = weakref.ref(self)
        self._pool = compat.start_pool(
            pool, num_workers, RowGroupWorker, worker_args, ResultSerializer(), lambda: _check(weak_self), stall_seconds
        )
        self.close = weakref.finalize(self, _close, self._pool, worker_args.cancelled)

    close: Callable[[], Any] = staticmethod(lambda: None)

    def slabs(self) -> Iterator[tuple[Slab, list[pa.RecordBatch]]]:
        """Each slab with its parts, in order of delivery."""
        for slab in self._slabs:
            self._ask_ahead(until=slab.positions[-1])
            while any((position, slab.index) not in self._parts for position in slab.positions):
                self._receive()
                self._ask_ahead(until=-1)
            yield slab, [self._parts.pop((position, slab.index)) for position in slab.positions]
            self._num_rows_held -= slab.num_rows

    def _ask_ahead(self, until: int) -> None:
        """Ask for what fits under the bound, and for all up to position `until` whether it fits or not."""
        while self._next_request is not None:
            request = self._next_request
            if request.position > until and self._num_rows_held + request.num_rows > self._max_rows_held:
                return
            file, group, num_rows = self._locate(request.group)
            self._num_rows_held += request.num_rows
            self._outstanding[request.position] = request
            takes = [rows for _, rows in request.takes]
            self._require_live_workers()  # the process pool would try for 20 s to send to workers that are gone
            self._pool.ventilate(position=request.position, file=file, group=group, num_rows=num_rows, takes=takes)
            self._next_request = next(self._requests, None)

    def _receive(self) -> None:
        self._wait_began = time.monotonic()
        try:
            result = self._pool.get_results()
        except compat.EmptyResultError:
            raise ReadError(
                f"the worker pool reports its end while {len(self._outstanding)} row groups are outstanding: "
                "this Petastorm loses results; install petastorm 0.12.1"
            ) from None
        if result.error is not None:
            raise result.error
        request = self._outstanding.pop(result.position)
        for (slab_index, _), part in zip(request.takes, result.parts, strict=True):
            self._parts[result.position, slab_index] = part

    def check(self) -> None:
        """Raise if waiting is in vain."""
        self._require_live_workers()
        if time.monotonic() - self._wait_began > self._stall_seconds:
            waiting = min(self._outstanding.values(), key=lambda request: request.position)
            file, group, _ = self._locate(waiting.group)
            raise ReadError(
                f"nothing came for {self._stall_seconds:g} s; the next is row group {group} of {self._paths[file]}: "
                "check the storage, or raise stall_seconds"
            )

    def _require_live_workers(self) -> None:
        if dead := compat.dead_workers(self._pool):
            raise ReadError(
                f"{dead[0]} (killed, or out of memory?): run with fewer workers or a smaller buffer, then resume"
            )


def _check(weak_delivery: weakref.ref[Delivery]) -> None:
    delivery = weak_delivery()
    if delivery is not None:
        delivery.check()


def _close(pool: Any, cancelled: threading.Event | None) -> None:
    if cancelled is not None:
        cancelled.set()
    compat.stop_pool(pool)
