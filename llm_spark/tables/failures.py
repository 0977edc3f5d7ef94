"""What storage says when it fails, in one line with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from llm_spark.errors import UserError

_MAX_CAUSES = 20
_DENIED = "Permission denied"
_FAULTS = {
    "No space left on device": "the disk is full: make room, there or in Spark's scratch folder (spark.local.dir)",
    "Disk quota exceeded": "the quota of the disk is used up: make room, there or in Spark's scratch folder (spark.local.dir)",
    "Read-only file system": "it cannot be written, being on a read-only file system: mount it for writing, or give another warehouse=",
    "Mkdirs failed": "it cannot be written: mount it for writing, grant that, or give another warehouse=",
    _DENIED: "it may not be written or read by this account: grant that, or give another warehouse=",
    "FAILED_READ_FILE.FILE_NOT_EXIST": "a file that its tables list is gone: restore it, or an earlier version of the table",
    "DELTA_LOG_FILE_NOT_FOUND": "a file of a table's log is gone: restore it from a backup of the folder",
}


def storage_failure(error: BaseException, root: str) -> str:
    """What befell the warehouse at `root`, told from what Spark, Delta or the system raised; empty where it was something else.

    What may not be read or written may lie elsewhere, and is then named itself.
    """
    told = "\n".join(_texts(error))
    for sign, meaning in _FAULTS.items():
        if sign in told:
            if sign == _DENIED and urlparse(root).path not in told:
                line = next(line for line in told.splitlines() if sign in line)
                return f"{line.strip()[:300]}: let this account read and write it, then run this again"
            return f"warehouse '{root}': {meaning}, then run this again; what was written before still stands"
    return ""


@contextmanager
def storage_told(root: str) -> Iterator[None]:
    """UserError in one line in place of what the storage of the warehouse at `root` raises in the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (failure := storage_failure(error, root)):
            raise
        raise UserError(failure) from error


def _texts(error: BaseException) -> Iterator[str]:
    """What the error and all its causes say, here and in the JVM."""
    seen: BaseException | None = error
    while seen is not None:
        yield str(seen)
        java = getattr(seen, "java_exception", None) or getattr(seen, "_origin", None)
        for _ in range(_MAX_CAUSES):
            if java is None or not hasattr(java, "getCause"):
                break
            yield str(java.toString())
            java = java.getCause()
        seen = seen.__cause__
