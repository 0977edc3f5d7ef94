"""An object store for tests: in memory, and as bare as S3."""

from __future__ import annotations

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

KINDS = ["local", "hdfs", "object store"]
"""Kinds of file systems, each with a way of its own to write a file whole; memory:// has that of HDFS."""


class Bucket(MemoryFileSystem):
    """Only putting an object is whole or not at all; a folder is there as long as an object's name begins with its."""

    protocol = ("bucket", "s3", "s3a")
    store: ClassVar[dict[str, Any]] = {}
    missing_meanwhile: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("bucket://"))

    def exists(self, path: str, **kwargs: Any) -> bool:
        name = self._strip_protocol(path)
        return any(key == name or key.startswith(f"{name}/") for key in self.store)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError(f"an object store has no folders, and '{path}' is to be made")

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        raise AssertionError(f"an object store renames nothing, and '{path1}' is to become '{path2}'")

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        self.missing_meanwhile.append(path)


def empty_bucket() -> Bucket:
    """What URLs that begin with bucket:// lead to."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.missing_meanwhile.clear()
    return Bucket()


def url_on(kind: str, folder: str) -> str:
    """Where `folder`, a name of this test's own, lies on a disk, on HDFS or on an object store."""
    if kind == "object store":
        empty_bucket()
        return f"bucket://tests/{folder.strip('/')}"
    return {"local": folder, "hdfs": f"memory://{folder.strip('/')}"}[kind]
