"""One writer at a time on a warehouse in a local or shared folder, where Delta alone cannot see to it.

What keeps two runs from both changing a table that was read before:
- On HDFS and on Azure's storage a Delta commit is atomic between machines, and a commit in turn (`Warehouse.replace_in_turn`) is refused where
  another run took the turn. No lock is needed.
- On S3 the same holds between the threads of one driver. Between drivers it holds once Delta's own log store for several of them is set up
  (spark.delta.logStore.s3a.impl=io.delta.storage.S3DynamoDBLogStore); without it Delta promises nothing of any table.
- In a local folder Delta looks whether a commit is there and then renames: two JVMs may both succeed. Here this lock is held while a table is
  read, decided upon and written.

The lock is the kernel's (flock), on a file beside the table that names its holder. It needs no time of expiry, and none could be set right: it
is gone with the process that holds it, killed or not. On NFS, Linux carries it to the server, so it holds between machines too.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from llm_spark.errors import UserError
from llm_spark.logs import log

WAIT_SECONDS = 120.0
"""For a holder's few seconds of work, on a machine that is busy."""
_POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, wait_seconds: float = WAIT_SECONDS, what: str = "", shared: bool = False) -> Iterator[None]:
    """Hold the lock at `path` while the block runs. UserError naming its holder where that keeps it for longer than `wait_seconds`.

    `what` tells others what holds it. Those that hold it `shared` keep nobody out but the one that wants it for itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}; is the warehouse writable?") from error
    with file:
        _take(file, path, wait_seconds, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{what}{', ' if what else ''}{this_process()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        # Closing the file gives the lock back.
        yield


def this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _take(file: TextIO, path: Path, wait_seconds: float, kind: int) -> None:
    until = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                file.seek(0)
                holder = file.read() or "another process"
                held = f"has been held for {wait_seconds:g} s" if wait_seconds else "is held"
                raise UserError(f"'{path}' {held} by {holder}: let it finish, then run this again") from None
        except OSError as error:
            log.warning("'%s' cannot be locked (%s): let no other run change the models meanwhile", path, error)
            return
        time.sleep(_POLL_SECONDS)
