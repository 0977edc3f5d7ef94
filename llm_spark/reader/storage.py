"""Reading from storage that fails or hangs: again after a pause, by several threads, and never longer than is allowed."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from .errors import ReaderError, ReadError

T = TypeVar("T")
Item = TypeVar("Item")
NUM_ATTEMPTS = 6
STALL_SECONDS = 300.0
_FIRST_BACKOFF_SECONDS = 0.3
_LONGEST_BACKOFF_SECONDS = 10.0
# The client libraries of object stores have errors of their own that are no OSError. These are what a program does wrong.
_NOT_OF_THE_STORAGE = (
    *(ReaderError, pa.ArrowException, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(NameError, NotImplementedError, TypeError, ValueError),
)


# Arrow gives what a file's bytes are at fault for as an OSError too.
_OF_THE_FILE = re.compile("Couldn't deserialize thrift|is a directory", re.IGNORECASE)


def retried(what: str, read: Callable[[], T], num_attempts: int, cancelled: threading.Event | None = None) -> T:
    """What `read` returns, after at most so many attempts with a growing pause between them.

    Args:
        what: is read, for the message.
        cancelled: when set, the pause ends at once and no other attempt is made.

    Raises:
        ReadError: permission is denied, or the last attempt failed.
        FileNotFoundError: at the first attempt, for it means different things to different callers; so does what is no
        fault of the storage.
        pyarrow.ArrowInvalid: at the first attempt, what is read is no sound file.
    """
    cancelled = cancelled or threading.Event()
    for attempt in range(1, num_attempts + 1):
        try:
            return read()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise ReadError(
                f"{what}: permission denied ({first_line(error)}): give this process's account the right to read it"
            ) from error
        except Exception as error:
            if isinstance(error, _NOT_OF_THE_STORAGE) and not isinstance(error, OSError):
                raise
            if _OF_THE_FILE.search(str(error)):
                raise pa.ArrowInvalid(first_line(error)) from error
            backoff_seconds = min(_FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), _LONGEST_BACKOFF_SECONDS)
            if attempt == num_attempts or cancelled.wait(backoff_seconds):
                raise ReadError(
                    f"{what}: failed {attempt} times, last with {type(error).__name__}: {first_line(error)}; "
                    "check the storage, or raise num_attempts"
                ) from error
    raise AssertionError("num_attempts is at least 1")


def in_threads(
    read: Callable[[Item, threading.Event], T], items: Sequence[Item], num_threads: int, stall_seconds: float, what: str
) -> list[T]:
    """`read(item, cancelled)` of every item, in order, by several threads.

    The first error ends it, and so does an interrupt (Ctrl-C): then `cancelled` is set, and nobody waits for a read
    that hangs. Raises ReadError when nothing has come for `stall_seconds`.
    """
    cancelled = threading.Event()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    for place in range(len(items)):
        waiting.put(place)

    def work() -> None:
        while not cancelled.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((place, read(items[place], cancelled), None))
            except BaseException as error:  # reaches the caller
                done.put((place, None, error))

    # Not an executor's: the interpreter would wait for those at its end, for ever where the storage hangs.
    for number in range(min(num_threads, len(items))):
        threading.Thread(target=work, name=f"llm_spark reader, {what} {number}", daemon=True).start()
    found: dict[int, T] = {}
    try:
        while len(found) < len(items):
            try:
                place, result, error = done.get(timeout=stall_seconds)
            except queue.Empty as stalled:
                missing = next(place for place in range(len(items)) if place not in found)
                raise ReadError(
                    f"{what}: nothing came for {stall_seconds:g} s, {len(found)} of {len(items)} are read and number "
                    f"{missing + 1} is not; check the storage, or raise stall_seconds"
                ) from stalled
            if error is not None:
                raise error
            found[place] = result  # type: ignore[assignment]
    finally:
        cancelled.set()
    return [found[place] for place in range(len(items))]


def first_line(error: BaseException) -> str:
    """Of an error's text; its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
