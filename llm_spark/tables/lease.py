"""One run at a time on a whole warehouse, wherever it lies.

In a local or shared folder the kernel's lock does it (tables/lock.py): it is gone with the process that holds it. Object storage has none, so
there a row of the table `locks` says who holds it, and until when. The row is written in turn, so that of two that found it free one has it
and the other is told (on S3 between drivers as far as Delta promises anything there: see tables/lock.py). A thread renews it while the work
goes on; of a run that was killed it runs out by itself. A run that could not renew in time (its machine slept, the storage was away) may
find that another has taken over, and must then stop: `Lease.check` raises.

The times are those of the machines: their clocks must not differ by more than a part of `LEASE`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pyspark.sql import Row

from llm_spark.errors import UserError
from llm_spark.logs import log
from llm_spark.schemas import LOCKS
from llm_spark.tables.lock import locked, this_process
from llm_spark.tables.warehouse import Warehouse

LEASE = timedelta(minutes=10)
"""After so long without a sign of life a lock is anybody's: long enough for a slow storage and differing clocks, short enough for a night."""
_RENEWALS = 4
"""Tries within a lease."""
_POLL_SECONDS = 5.0
_WRITER = "llm_spark-locks"


class Lease:
    """What the holder of a lock asks before each further step."""

    def check(self) -> None:
        """UserError where the lock is not held any more."""


@contextmanager
def held(warehouse: Warehouse, name: str, what: str, wait_seconds: float = 0.0) -> Iterator[Lease]:
    """Hold the lock of this name while the block runs. UserError naming its holder where that keeps it for longer than `wait_seconds`."""
    if warehouse.is_local:
        with locked(_path(warehouse, name), wait_seconds, what):
            yield Lease()
        return
    with table_lock(warehouse, name, what, wait_seconds) as lease:
        yield lease


@contextmanager
def held_by_nobody(warehouse: Warehouse, name: str, what: str) -> Iterator[None]:
    """Run the block beside others that do the same, and beside none that holds the lock. UserError naming the holder where there is one.

    In object storage that is looked up once, at the beginning.
    """
    if warehouse.is_local:
        if not Path(warehouse.root).exists():
            yield
            return
        with locked(_path(warehouse, name), 0.0, what, shared=True):
            yield
        return
    if (holder := _holder(warehouse, name)) is not None:
        raise UserError(_told(warehouse, holder, 0.0))
    yield


@contextmanager
def held_alone(warehouse: Warehouse, name: str, what: str) -> Iterator[None]:
    """Run the block beside none of the same name. UserError naming the holder where there is one.

    In a local or shared folder that is there; elsewhere what two of them write is told apart by Delta's commits in turn.
    """
    if not warehouse.is_local or not Path(warehouse.root).exists():
        yield
        return
    with locked(_path(warehouse, name), 0.0, what):
        yield


def _path(warehouse: Warehouse, name: str) -> Path:
    return Path(warehouse.root) / f".{name}.lock"


@dataclass
class _TableLease(Lease):
    warehouse: Warehouse
    name: str
    owner: str
    lease: timedelta
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    taken_at: datetime = field(default_factory=lambda: _now())
    lost: str = ""
    _kept_at: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        if self.lost:
            raise UserError(f"{self.lost}: run this again once it has finished")
        if time.monotonic() - self._kept_at > self.lease.total_seconds():
            raise UserError(f"the lock '{self.name}' could not be renewed and ran out: run this again")

    def take(self) -> Row | None:
        """The row of the holder that is in the way; None where it is taken now."""
        self.warehouse.create(LOCKS)
        while True:
            table_log = self.warehouse.log(LOCKS)
            rows = self.warehouse.read(LOCKS, table_log.version).collect()
            holder = _live(rows, self.name)
            if holder is not None:
                return holder
            self.taken_at = _now()
            if self._write(rows, table_log.last_turn(_WRITER) + 1):
                return None

    def keep(self) -> None:
        """Renew until it is given back; the work of a thread."""
        while not self._over.wait(self.lease.total_seconds() / _RENEWALS):
            try:
                self._renew()
            except Exception as error:
                told = " ".join(str(error).split())[:200]
                log.warning("the lock '%s' could not be renewed (%s: %s)", self.name, type(error).__name__, told)
            if self.lost:
                return

    def give_back(self) -> None:
        self._over.set()
        if not self.lost:
            self._change(lambda rows: [row for row in rows if row["name"] != self.name])

    def _renew(self) -> None:
        self._change(lambda rows: rows, keeps=True)

    def _change(self, change, keeps: bool = False) -> None:  # type: ignore[no-untyped-def]
        while True:
            table_log = self.warehouse.log(LOCKS)
            rows = self.warehouse.read(LOCKS, table_log.version).collect()
            mine = [row for row in rows if row["name"] == self.name and row["token"] == self.token]
            if not mine:
                self.lost = f"the lock '{self.name}' ran out, and another run took it"
                return
            if self._write(change(rows), table_log.last_turn(_WRITER) + 1, keeps):
                return

    def _write(self, rows: list[Row], turn: int, keeps: bool = True) -> bool:
        others = [tuple(row) for row in rows if row["name"] != self.name]
        mine = [(self.name, self.owner, self.token, self.taken_at, _now() + self.lease)] if keeps else []
        frame = self.warehouse.spark.createDataFrame([*others, *mine], LOCKS.schema).coalesce(1)
        began = time.monotonic()
        is_written = self.warehouse.replace_in_turn(LOCKS, frame, _WRITER, turn)
        if is_written:
            self._kept_at = began
        return is_written


@contextmanager
def table_lock(
    warehouse: Warehouse, name: str, what: str, wait_seconds: float = 0.0, lease: timedelta = LEASE
) -> Iterator[Lease]:
    """The lock as a row of the table `locks`; as `held`."""
    mine = _TableLease(warehouse, name, f"{what}, {this_process()}", lease)
    until = time.monotonic() + wait_seconds
    while (holder := mine.take()) is not None:
        if time.monotonic() >= until:
            raise UserError(_told(warehouse, holder, wait_seconds))
        time.sleep(min(_POLL_SECONDS, max(0.1, until - time.monotonic())))
    keeper = threading.Thread(target=mine.keep, name=f"lock {name}", daemon=True)
    keeper.start()
    try:
        yield mine
    finally:
        mine._over.set()
        keeper.join()
        try:
            mine.give_back()
        except Exception as error:
            told = " ".join(str(error).split())[:200]
            log.warning("the lock '%s' could not be given back (%s), and runs out by itself", name, told)


def _holder(warehouse: Warehouse, name: str) -> Row | None:
    return _live(warehouse.read(LOCKS).collect(), name) if warehouse.exists(LOCKS) else None


def _live(rows: list[Row], name: str) -> Row | None:
    return next((row for row in rows if row["name"] == name and row["expires_at"] > _now()), None)


def _told(warehouse: Warehouse, holder: Row, waited_seconds: float) -> str:
    held = f"has been held for {waited_seconds:g} s" if waited_seconds else "is held"
    told = (
        f"the lock '{holder['name']}' of '{warehouse.root}' {held} by {holder['owner']} since "
        f"{holder['taken_at']:%Y-%m-%d %H:%M:%S} UTC (it runs out at {holder['expires_at']:%Y-%m-%d %H:%M:%S}, unless that run renews it): "
    )
    if holder["expires_at"] <= _now() + 2 * LEASE:
        return f"{told}let it finish, then run this again"
    return (
        f"{told}no lock lasts so long, so that its machine's clock or this one's is wrong; let it finish, or, if it was killed, remove "
        f"'{warehouse.path(LOCKS)}'"
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
