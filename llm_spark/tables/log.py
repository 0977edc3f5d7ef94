"""A table's Delta log: what each commit did, and which commits changed data.

Compacting files, vacuuming and setting properties are commits too, and raise a table's version without changing a row. Whatever
asks "has my input changed?" asks for the data version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint.*\.parquet")


@dataclass(frozen=True)
class Commit:
    """One commit, as its file in the log tells it."""

    version: int
    actions: tuple[dict[str, Any], ...]

    @property
    def note(self) -> str | None:
        """What the writer said of it (Delta's userMetadata)."""
        return next(
            (action["commitInfo"].get("userMetadata") for action in self.actions if "commitInfo" in action), None
        )

    @property
    def made_ms(self) -> int | None:
        """When its writer made it, in epoch milliseconds; None where it does not tell."""
        return next((action["commitInfo"].get("timestamp") for action in self.actions if "commitInfo" in action), None)

    @property
    def changed_data(self) -> bool:
        """Whether a row may have come, gone or changed. A commit with a note counts: whoever wrote it said what the rows are now."""
        return bool(self.note) or any(
            file.get("dataChange", True) for _, file in (*self.files("add"), *self.files("remove"))
        )

    def files(self, action: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and action of each file that was added ("add") or removed ("remove")."""
        for entry in self.actions:
            if action in entry:
                yield file_name(entry[action]["path"]), entry[action]


def file_name(path: str) -> str:
    """The last part of a path. Delta's names carry a UUID: they are unique in a table, and free of characters that a log would escape."""
    return path.rsplit("/", 1)[-1]


class TableLog:
    """The log of the table at `path`, as it stood when this was made."""

    def __init__(self, spark: SparkSession, path: str) -> None:
        jvm: Any = spark._jvm
        self._jvm = jvm
        # The log's own snapshot: a query of the history takes ten times as long.
        self._log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, path)
        none = jvm.scala.Option.empty()
        self._snapshot = self._log.update(False, none, none)
        self._settings = spark._jsparkSession.sessionState().newHadoopConf()

    @property
    def version(self) -> int:
        """The newest version."""
        return int(self._snapshot.version())

    @property
    def num_files(self) -> int:
        return int(self._snapshot.numOfFiles())

    @property
    def num_bytes(self) -> int:
        return int(self._snapshot.sizeInBytes())

    @property
    def table_id(self) -> str:
        """Delta's id of the table: another one after it was deleted and made anew."""
        return str(self._snapshot.metadata().id())

    @property
    def created_at(self) -> datetime:
        """UTC, of the table: later than all that was made from one that was deleted and made anew. The least where the log does not tell."""
        created_ms = self._snapshot.metadata().createdTime()
        if not created_ms.isDefined():
            return datetime.min
        return datetime.fromtimestamp(created_ms.get() / 1000, UTC).replace(tzinfo=None)

    @property
    def properties(self) -> dict[str, str]:
        configuration = self._snapshot.metadata().configuration()
        return {pair._1(): pair._2() for pair in _elements(configuration)}

    @property
    def partition_by(self) -> list[str]:
        return list(_elements(self._snapshot.metadata().partitionColumns()))

    def last_turn(self, writer: str) -> int:
        """The newest `txnVersion` that `writer`, a `txnAppId`, has committed; 0 before its first."""
        found = self._snapshot.transactions().get(writer)
        return int(found.get()) if found.isDefined() else 0

    def commit(self, version: int) -> Commit | None:
        """One commit; None where the log has forgotten it."""
        path = self._jvm.org.apache.hadoop.fs.Path(self._log.logPath(), f"{version:020}.json")
        try:
            lines = self._log.store().read(path, self._settings).mkString("\n").split("\n")
        except Py4JJavaError as error:
            if "FileNotFoundException" in str(error.java_exception):
                return None
            raise
        return Commit(version, tuple(json.loads(line) for line in lines if line.strip()))

    def data_commit(self, version: int | None = None) -> Commit:
        """The newest commit that changed data, among those up to `version`; the oldest that the log remembers where none of them did."""
        here = self.version if version is None else version
        found = Commit(here, ())
        while here >= 0 and (commit := self.commit(here)) is not None:
            found = commit
            if commit.changed_data:
                break
            here -= 1
        return found

    def files_removed_since(self, since_ms: float) -> set[str]:
        """Names of the files that commits since then (epoch milliseconds) removed, as far back as the log remembers.

        Delta's snapshot knows them for `delta.deletedFileRetentionDuration` only, a week. A commit that does not tell its time counts. One that
        is older may have been made after one that is not, by a clock that was moved back.
        """
        names: set[str] = set()
        for version in range(self.version, -1, -1):
            commit = self.commit(version)
            if commit is None:
                break
            if commit.made_ms is None or commit.made_ms >= since_ms:
                names |= {name for name, _ in commit.files("remove")}
        return names

    @cached_property
    def versions(self) -> range:
        """The versions that the log can tell the files of: from its first commit or its oldest checkpoint on."""
        path = self._log.logPath()
        names = [entry.getPath().getName() for entry in path.getFileSystem(self._settings).listStatus(path)]
        commits = {int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))}
        checkpoints = {int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name))}
        oldest = 0 if 0 in commits else min(checkpoints, default=self.version)
        return range(oldest, self.version + 1)


def _elements(collection: Any) -> Iterator[Any]:
    iterator = collection.iterator()
    while iterator.hasNext():
        yield iterator.next()
