"""Whole files on any file system that fsspec reaches, under a local path or a URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec

from llm_spark.errors import UserError

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""There what is put under a name stands there whole or not at all, renaming is copying, and a folder is but a part of the name."""


def locate(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it. Raises UserError where none is installed for it."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot reach '{path}': {' '.join(str(error).split())}") from error


def write_file(path: str, content: bytes) -> None:
    """Write a file whole or not at all: beside, then renamed; on a local disk flushed, the file before and its name after."""
    filesystem, name = locate(path)
    if not OBJECT_STORES.isdisjoint(_protocols(filesystem)):
        filesystem.pipe_file(name, content)
        return
    parent = name.rsplit("/", 1)[0]
    filesystem.makedirs(parent, exist_ok=True)
    if "file" not in _protocols(filesystem):
        beside = f"{name}.writing"
        filesystem.pipe_file(beside, content)
        if filesystem.exists(name):  # HDFS renames onto no file
            filesystem.rm_file(name)
        filesystem.mv(beside, name)
        return
    beside = f"{name}.writing.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(beside).replace(name)
    # The new name too, lest a power cut leave a manifest without what it vouches for.
    folder = os.open(parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def read_file(path: str) -> bytes | None:
    """The file's bytes, or None when there is no such file."""
    filesystem, name = locate(path)
    try:
        content: bytes = filesystem.cat_file(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content
