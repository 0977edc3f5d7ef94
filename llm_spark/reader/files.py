"""Opening Parquet files, local or behind any fsspec URL, and what their footers say."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from .errors import ReaderError, SnapshotError
from .storage import first_line, in_threads, retried

T = TypeVar("T")
_FOOTER_THREADS = 16
_CACHED_FOOTERS = 256
_LOCAL = LocalFileSystem()


@dataclass(frozen=True)
class Footer:
    """Of one file: its schema and the rows of each row group."""

    schema: pa.Schema
    group_rows: tuple[int, ...]


class FooterCache:
    """The footers that one worker used last, so that a file of many row groups is not asked for its footer each time."""

    def __init__(self) -> None:
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()

    def get(self, file: int) -> pq.FileMetaData | None:
        return self._footers.get(file)

    def put(self, file: int, footer: pq.FileMetaData) -> None:
        self._footers[file] = footer
        self._footers.move_to_end(file)
        if len(self._footers) > _CACHED_FOOTERS:
            self._footers.popitem(last=False)


@dataclass(frozen=True)
class Files:
    """The files of one snapshot and how to reach them; pickles, so that worker processes have it too.

    Attributes:
        paths: local paths or fsspec URLs, in the order of the snapshot.
        of_what: what they are the files of, for messages, such as "version 7 of s3://b/t".
        num_attempts: how often a read is tried before it counts as failed.
        stall_seconds: how long none of the footers or lengths that are read together may come.
        storage_options: passed on to fsspec.
    """

    paths: tuple[str, ...]
    of_what: str
    num_attempts: int
    stall_seconds: float
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    def require_reachable_from_other_processes(self) -> None:
        """Refuse files that live in this process's memory.

        Raises:
            ReaderError: one does.
        """
        for path in self.paths:
            if path.startswith("memory://"):
                raise ReaderError(
                    f"{path} is in this process's memory, which worker processes do not see: use pool='thread'"
                )

    def footers(self) -> list[Footer]:
        """Every file's footer, in order, read by several threads.

        Raises:
            SnapshotError: a file is missing or is no Parquet file.
            ReadError: a file could not be read.
        """
        what = f"the footers of {self.of_what}"
        return in_threads(self._footer, range(len(self.paths)), _FOOTER_THREADS, self.stall_seconds, what)

    def row_lengths(self, column: str, footers: Sequence[Footer], num_threads: int) -> list[npt.NDArray[np.int32]]:
        """For each row group, in the order of the snapshot, the number of values in each row of a list column.

        Raises as `footers`.
        """
        groups = [(file, group) for file, footer in enumerate(footers) for group in range(len(footer.group_rows))]

        def lengths_of(file_and_group: tuple[int, int], cancelled: threading.Event) -> npt.NDArray[np.int32]:
            file, group = file_and_group
            schema = footers[file].schema
            # A writer that saw only nulls gave the column no type.
            if column not in schema.names or pa.types.is_null(schema.field(column).type):
                return np.zeros(footers[file].group_rows[group], dtype=np.int32)
            table = self.read(file, group, [column], cancelled=cancelled)
            lengths = pc.fill_null(pc.list_value_length(table.column(0)), 0)
            return np.asarray(lengths).astype(np.int32)

        what = f"the lengths of '{column}' in {self.of_what}"
        return in_threads(lengths_of, groups, num_threads, self.stall_seconds, what)

    def read(
        self,
        file: int,
        group: int,
        columns: Sequence[str],
        footers: FooterCache | None = None,
        cancelled: threading.Event | None = None,
    ) -> pa.Table:
        """The named columns of one row group; those that the file lacks are left out.

        Args:
            footers: keeps footers between calls; belongs to one thread.
            cancelled: when set, the wait before another attempt ends at once.

        Raises:
            SnapshotError: the file is missing or no sound Parquet file.
            ReadError: it could not be read in `num_attempts` attempts.
        """

        def read() -> pa.Table:
            with self._open(file, footers) as parquet:
                present = [name for name in columns if name in parquet.schema_arrow.names]
                table = parquet.read_row_group(group, columns=present, use_threads=False)
                # No column at all loses the number of rows.
                return table if present else pa.table({"": pa.nulls(parquet.metadata.row_group(group).num_rows)})

        return self._retry(f"row group {group} of {self.paths[file]}", read, cancelled)

    def _footer(self, file: int, cancelled: threading.Event) -> Footer:
        def read() -> Footer:
            with self._open(file) as parquet:
                metadata = parquet.metadata
                rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
                return Footer(parquet.schema_arrow, rows)

        return self._retry(f"the footer of {self.paths[file]}", read, cancelled)

    @contextmanager
    def _open(self, file: int, footers: FooterCache | None = None) -> Iterator[pq.ParquetFile]:
        path = self.paths[file]
        footer = footers.get(file) if footers is not None else None
        filesystem, path_in_filesystem = self._locate(path)
        with ExitStack() as stack:
            if isinstance(filesystem, LocalFileSystem):
                parquet = stack.enter_context(pq.ParquetFile(path_in_filesystem, metadata=footer))
            else:
                opened = stack.enter_context(filesystem.open(path_in_filesystem, "rb"))
                parquet = stack.enter_context(pq.ParquetFile(opened, metadata=footer, pre_buffer=True))
            if footers is not None:
                footers.put(file, parquet.metadata)
            yield parquet

    def _locate(self, path: str) -> tuple[Any, str]:
        # fsspec's own look-up takes as long as opening a local file.
        return (_LOCAL, path) if path.startswith("/") else fsspec.core.url_to_fs(path, **self.storage_options)

    def _retry(self, what: str, read: Callable[[], T], cancelled: threading.Event | None) -> T:
        try:
            return retried(what, read, self.num_attempts, cancelled)
        except FileNotFoundError as error:
            raise SnapshotError(
                f"{what}: the file is gone though {self.of_what} lists it (VACUUM removes files of old versions): "
                "read a newer version, or restore the file"
            ) from error
        except pa.ArrowInvalid as error:
            raise SnapshotError(
                f"{what}: not a sound Parquet file ({first_line(error)}): restore it or rewrite the table"
            ) from error
