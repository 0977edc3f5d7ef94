"""A class-data archive for Spark's JVM: what one session has loaded, kept for the next ones to map instead of loading it again.

Loading and checking the twenty thousand classes of Spark and Delta is a third of what a short stage takes. The first session of a machine
writes the archive as it ends (`-XX:ArchiveClassesAtExit`); Java takes it only where it was made by the same Java from the same JARs, and
starts without it otherwise.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from llm_spark.logs import log

MAX_ARCHIVES = 3
"""Of other environments and Java versions on this machine; each takes some 200 MB. Those used last stay."""
WRITE_SECONDS = 120
"""Longer than this a session does not wait for its archive, which takes some seconds."""
_MAGIC = 0xF00BABA8
"""Java's mark of an archive of this kind, in the machine's byte order. It is written last."""


class ClassArchive:
    """The archive of one Java and one list of JARs, in `folder`."""

    def __init__(self, folder: Path, java_version: str, jars: Iterable[str]) -> None:
        told = "\n".join([java_version, *jars])
        self.path = folder / f"classes-{hashlib.sha256(told.encode()).hexdigest()[:16]}.jsa"
        self._written = self.path.with_suffix(f".{os.getpid()}")
        self._turn: TextIO | None = None

    def java_options(self) -> str:
        """Options that take the archive, or let this JVM write it where there is none; none where another process writes it now."""
        quiet = "-Xlog:cds*=off"  # Java's warnings go to standard output, where a query's answer goes too.
        if self.path.exists():
            with contextlib.suppress(OSError):  # another user's cache may be read-only
                os.utime(self.path)
            return f'"-XX:SharedArchiveFile={self.path}" -Xshare:auto {quiet}'
        if not self._take_turn():
            return ""
        return f'"-XX:ArchiveClassesAtExit={self._written}" {quiet}'

    def keep_at_exit(self, jvm: subprocess.Popen[bytes]) -> None:
        """As this process ends, wait until its JVM has written the archive, if it is this one's turn."""
        if self._turn is not None:
            atexit.register(self._keep, jvm)

    def _take_turn(self) -> bool:
        """Whether this process writes the archive. Its turn ends with it, however it ends."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._turn = self.path.with_suffix(".lock").open("w")
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._turn = None
        return self._turn is not None

    def _keep(self, jvm: subprocess.Popen[bytes]) -> None:
        log.info("keeping what Java has loaded, for quicker starts from now on")
        try:
            if jvm.stdin is not None:
                jvm.stdin.close()  # Spark's gateway ends when nobody can write to it any more.
            jvm.wait(WRITE_SECONDS)
            if is_whole(self._written):
                self._written.replace(self.path)
                self._remove_others()
        except (OSError, subprocess.TimeoutExpired):
            pass  # The next session tries again.
        finally:
            self._written.unlink(missing_ok=True)

    def _remove_others(self) -> None:
        """Archives least lately used, beyond MAX_ARCHIVES, and what sessions left that were killed while they wrote theirs."""
        archives = sorted(self.path.parent.glob("classes-*.jsa"), key=lambda path: path.stat().st_mtime)
        for path in archives[:-MAX_ARCHIVES]:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        for path in self.path.parent.glob(f"{self.path.stem}.*[0-9]"):
            path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether Java has finished writing the archive."""
    try:
        with path.open("rb") as file:
            return file.read(4) == struct.pack("=I", _MAGIC)
    except OSError:
        return False
