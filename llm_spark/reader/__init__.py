"""Petastorm on today's Arrow: the files of one snapshot into ragged torch batches, each row exactly once an epoch.

    from llm_spark.reader import RaggedReader, Snapshot

The room depends on petastorm, pyarrow, numpy, torch and fsspec and on no other room: copy the folder to use it alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Batch, Ragged
    from .errors import ColumnError, ReaderError, ReadError, SnapshotError, StateError
    from .reader import Epoch, RaggedReader
    from .snapshot import Snapshot

__all__ = [
    "Batch",
    "ColumnError",
    "Epoch",
    "Ragged",
    "RaggedReader",
    "ReadError",
    "ReaderError",
    "Snapshot",
    "SnapshotError",
    "StateError",
]

_MODULES = {"Batch": "batch", "Ragged": "batch", "Epoch": "reader", "RaggedReader": "reader", "Snapshot": "snapshot"}


def __getattr__(name: str) -> Any:
    # On first use, since worker processes import this package too and have no need of torch's seconds and megabytes.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
