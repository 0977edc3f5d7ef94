"""The files of one version of a table: given as a list, or read from a Delta log.

Follows the Delta transaction log protocol (https://github.com/delta-io/delta/blob/master/PROTOCOL.md): the newest
checkpoint at or before the version, then the JSON commits after it; a file is live if its last action, by (path,
deletion vector id), is `add`. What this reading does not understand (column mapping, deletion vectors on live files,
version 2 checkpoints, unknown features, a newer protocol) is refused by name, never ignored.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import SnapshotError
from .storage import NUM_ATTEMPTS, STALL_SECONDS, first_line, in_threads, retried

T = TypeVar("T")

_COMMIT = re.compile(r"(\d{20})\.json$")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet$")
_V2_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.[0-9a-fA-F-]{36}\.(?:json|parquet)$")
_LOG_THREADS = 16
_READER_VERSION = 3
"""The newest version of the protocol for readers that is understood."""
# Features that change nothing in how live files without deletion vectors are read.
_HARMLESS_FEATURES = {
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "columnMapping",
}
_ACTIONS = ["add", "remove", "metaData", "protocol"]


@dataclass(frozen=True)
class Snapshot:
    """The data files of one version of a table.

    Attributes:
        files: paths or fsspec URLs of Parquet files, in the order they are read without shuffling.
        table: the table's name or URL, for messages.
        version: the version, for messages and the resume state; None for files that have none.
        files_with_deletion_vectors: those of `files` of which some rows are deleted; a reader refuses them.
        partition_columns: columns whose values stand in the log or in folder names, not in the files.
    """

    files: tuple[str, ...]
    table: str = ""
    version: int | None = None
    files_with_deletion_vectors: tuple[str, ...] = ()
    partition_columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.version is None:
            return self.table or "the list of files"
        return f"version {self.version} of {self.table or 'the table'}"

    @classmethod
    def of_delta(
        cls,
        table: str,
        version: int | None = None,
        partitions: Mapping[str, str | None] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        num_attempts: int = NUM_ATTEMPTS,
        stall_seconds: float = STALL_SECONDS,
    ) -> Snapshot:
        """The live files of a Delta table.

        Args:
            table: path or fsspec URL of the table's folder.
            version: the newest if None.
            partitions: only files whose partition columns have these values, as the log writes them; None is null.
            storage_options: passed on to fsspec.
            num_attempts: how often a failing read is tried, with a growing pause, before it counts as failed; the
                default outlasts a fault of nine seconds.
            stall_seconds: fail when nothing of the log has come for this long.

        Raises:
            SnapshotError: no Delta table, a version that is not there any more or not yet, a damaged log, or a feature
            that is not understood.
            ReadError: the log could not be read.
        """
        log = _DeltaLog(table, dict(storage_options or {}), num_attempts, stall_seconds)
        return log.snapshot(version, dict(partitions or {}))


class _DeltaLog:
    def __init__(self, table: str, storage_options: dict[str, Any], num_attempts: int, stall_seconds: float) -> None:
        self._table, self._num_attempts, self._stall_seconds = table.rstrip("/"), num_attempts, stall_seconds
        self._filesystem, self._root = fsspec.core.url_to_fs(self._table, **storage_options)

        def listed() -> list[str]:
            # On an object store fsspec remembers what it listed, and others write commits.
            self._filesystem.invalidate_cache()
            return list(self._filesystem.ls(f"{self._root}/_delta_log", detail=False))

        try:
            [entries] = self._in_threads(
                lambda what, cancelled: retried(what, listed, num_attempts, cancelled), [self._what]
            )
        except FileNotFoundError as error:
            raise SnapshotError(f"{table} has no _delta_log folder: give the folder of a Delta table") from error
        names = [entry.rsplit("/", 1)[-1] for entry in entries]
        self._commits = {int(match[1]): match[0] for name in names if (match := _COMMIT.fullmatch(name))}
        self._v2_checkpoints = {int(match[1]): match[0] for name in names if (match := _V2_CHECKPOINT.fullmatch(name))}
        self._checkpoints: dict[int, list[str]] = {}
        for name in sorted(names):
            if match := _CHECKPOINT.fullmatch(name):
                self._checkpoints.setdefault(int(match[1]), []).append(name)

    def snapshot(self, version: int | None, partitions: Mapping[str, str | None]) -> Snapshot:
        newest = max([*self._commits, *self._checkpoints], default=None)
        if newest is None:
            raise SnapshotError(f"{self._table}/_delta_log holds no commit: give the folder of a Delta table")
        version = newest if version is None else version
        if not 0 <= version <= newest:
            raise SnapshotError(f"{self._table} has no version {version}: its newest is {newest}")
        live: dict[tuple[str, str], dict[str, Any]] = {}
        metadata: dict[str, Any] = {}
        protocol: dict[str, Any] = {}
        for action in self._actions(version):
            if add := action.get("add"):
                live[_key(add)] = add
            elif remove := action.get("remove"):
                live.pop(_key(remove), None)
            elif found := action.get("metaData"):
                metadata = found
            elif found := action.get("protocol"):
                protocol = found
        self._refuse_what_is_not_understood(version, metadata, protocol)
        partition_columns = tuple(metadata.get("partitionColumns") or ())
        if unknown := sorted(set(partitions) - set(partition_columns)):
            raise SnapshotError(
                f"{self._table} is not partitioned by {unknown}: its partition columns are {list(partition_columns)}"
            )
        chosen = [
            add
            for _, add in sorted(live.items())
            if all(dict(add.get("partitionValues") or {}).get(name) == value for name, value in partitions.items())
        ]
        return Snapshot(
            files=tuple(self._url(add["path"]) for add in chosen),
            table=self._table,
            version=version,
            files_with_deletion_vectors=tuple(self._url(add["path"]) for add in chosen if add.get("deletionVector")),
            partition_columns=partition_columns,
        )

    def _actions(self, version: int) -> Iterator[dict[str, Any]]:
        complete = {v: _complete_parts(names) for v, names in self._checkpoints.items() if v <= version}
        start = max((v for v, names in complete.items() if names), default=-1)
        needed = range(start + 1, version + 1)
        if missing := [v for v in needed if v not in self._commits]:
            if covering := max((v for v in self._v2_checkpoints if missing[0] <= v <= version), default=None):
                raise self._version_2_checkpoint(self._v2_checkpoints[covering])
            raise SnapshotError(
                f"{self._table} cannot be read at version {version}: the log of version {missing[0]} is gone "
                "and no checkpoint covers it; read a newer version"
            )
        for actions_of, names in (
            (self._checkpoint_actions, complete.get(start, [])),
            (self._commit_actions, [self._commits[v] for v in needed]),
        ):
            for actions in self._in_threads(partial(self._read, actions_of), names):
                yield from actions

    def _in_threads(self, read: Callable[[str, threading.Event], T], names: Sequence[str]) -> list[T]:
        return in_threads(read, names, _LOG_THREADS, self._stall_seconds, self._what)

    @property
    def _what(self) -> str:
        return f"the log of {self._table}"

    def _read(self, actions_of: Callable[[str], list[T]], name: str, cancelled: threading.Event) -> list[T]:
        file = f"{self._table}/_delta_log/{name}"
        try:
            return retried(file, lambda: actions_of(name), self._num_attempts, cancelled)
        except FileNotFoundError as error:
            raise SnapshotError(f"{file} was removed while the log was read: read a newer version") from error
        except (json.JSONDecodeError, UnicodeDecodeError, pa.ArrowInvalid) as error:
            raise SnapshotError(
                f"{file} is damaged, or not yet written to its end ({first_line(error)}): try again, or restore it"
            ) from error

    def _commit_actions(self, name: str) -> list[dict[str, Any]]:
        with self._filesystem.open(f"{self._root}/_delta_log/{name}", "rb") as commit:
            return [json.loads(line) for line in commit if line.strip()]

    def _checkpoint_actions(self, name: str) -> list[dict[str, Any]]:
        with (
            self._filesystem.open(f"{self._root}/_delta_log/{name}", "rb") as opened,
            pq.ParquetFile(opened) as parquet,
        ):
            present = parquet.schema_arrow.names
            if "sidecar" in present and any(
                batch.column(0).null_count < batch.num_rows for batch in parquet.iter_batches(columns=["sidecar"])
            ):
                raise self._version_2_checkpoint(name)
            return [
                {action: value for action, value in row.items() if value is not None}
                for batch in parquet.iter_batches(columns=[action for action in _ACTIONS if action in present])
                for row in batch.to_pylist()
            ]

    def _version_2_checkpoint(self, name: str) -> SnapshotError:
        return SnapshotError(
            f"{self._table} has a version 2 checkpoint ({name}), which this reader does not follow: "
            "set delta.checkpointPolicy=classic before its next checkpoint, or pass the list of files that your engine gives"
        )

    def _refuse_what_is_not_understood(
        self, version: int, metadata: Mapping[str, Any], protocol: Mapping[str, Any]
    ) -> None:
        reader_version = int(protocol.get("minReaderVersion") or 1)
        if reader_version > _READER_VERSION:
            raise SnapshotError(
                f"version {version} of {self._table} has minReaderVersion {reader_version} and this reader knows the "
                f"protocol up to {_READER_VERSION}: copy the table with an older one"
            )
        features = set(protocol.get("readerFeatures") or ())
        if unknown := sorted(features - _HARMLESS_FEATURES):
            raise SnapshotError(
                f"version {version} of {self._table} uses the reader features {unknown}, unknown to this reader: "
                "rewrite the table without them"
            )
        configuration = dict(metadata.get("configuration") or {})
        if configuration.get("delta.columnMapping.mode", "none") != "none":
            raise SnapshotError(
                f"version {version} of {self._table} uses column mapping: its files have other column names; "
                "copy the table without delta.columnMapping.mode"
            )

    def _url(self, path: str) -> str:
        path = unquote(path)
        return path if urlsplit(path).scheme or path.startswith("/") else f"{self._table}/{path}"


def _key(action: Mapping[str, Any]) -> tuple[str, str]:
    vector = action.get("deletionVector")
    if not vector:
        return action["path"], ""
    return action["path"], f"{vector['storageType']}{vector['pathOrInlineDv']}@{vector.get('offset')}"


def _complete_parts(names: Sequence[str]) -> list[str]:
    """The files of one complete checkpoint among those of a version: the single file, or all parts of one set, or none."""
    sets: dict[str | None, list[str]] = {}
    for name in names:
        if match := _CHECKPOINT.fullmatch(name):
            sets.setdefault(match[3], []).append(name)
    return next((parts for total, parts in sets.items() if len(parts) == int(total or 1)), [])
