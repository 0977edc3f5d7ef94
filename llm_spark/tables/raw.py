"""Raw files: which there are, which of them cannot be read, and lines of text. Their records: raw_csv.py, raw_parquet.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.errors import UserError
from llm_spark.logs import log
from llm_spark.schemas.records import RAW, SOURCE_FILE
from llm_spark.tables.globs import fixed_part, glob_regex, hidden_by_wildcard, literal


@dataclass(frozen=True)
class RawFile:
    """One raw file as listed."""

    path: str
    """What a reader takes."""
    uri: str
    """What Spark reports as `_metadata.file_path`: the file's name in every table."""
    num_bytes: int
    modified_at: datetime


@dataclass(frozen=True)
class Listing:
    """What was found under the configured patterns."""

    files: list[RawFile]
    """By name."""
    unmatched: dict[str, re.Pattern[str]]
    """Pattern under which there is no file -> what a file's name, as far as it is not encoded, would have to match."""


def list_files(spark: SparkSession, patterns: Sequence[str]) -> Listing:
    """All files under `patterns` (files, folders, globs). Names beginning with `_` or `.` are passed over, as Spark does.

    Raises UserError naming the pattern that cannot be listed.
    """
    jvm: Any = spark._jvm
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    found: dict[str, RawFile] = {}
    unmatched: dict[str, re.Pattern[str]] = {}
    for pattern in patterns:
        path = jvm.org.apache.hadoop.fs.Path(pattern)
        try:
            system = path.getFileSystem(hadoop)
            whole = _decoded(system.makeQualified(path))
            statuses = [
                status
                for match in system.globStatus(path) or []
                if not hidden_by_wildcard(whole, _decoded(match.getPath()))
                for status in _files_of(system, match)
            ]
            if not statuses:
                _require_listable(system, jvm.org.apache.hadoop.fs.Path(fixed_part(pattern) or "."))
                unmatched[pattern] = glob_regex(whole)
        except Exception as error:
            remedies = {"Permission denied": ": let this account read it", _HAS_COLON: f": {_COLON}"}
            remedy = next((told for mark, told in remedies.items() if mark in str(error)), "")
            raise UserError(f"ingest.paths: '{pattern}' cannot be listed: {java_message(error)}{remedy}") from error
        for file in map(_raw_file, statuses):
            found[file.uri] = file
    return Listing([found[uri] for uri in sorted(found)], unmatched)


def tell_of_hidden_names(spark: SparkSession) -> None:
    """Java cannot see a file whose name its locale has no characters for, and says nothing of it."""
    jvm: Any = spark._jvm
    encoding = jvm.System.getProperty("sun.jnu.encoding")
    if encoding.upper() in ("ANSI_X3.4-1968", "US-ASCII", "ASCII", "646"):
        log.warning(
            "ingest: Java runs under a locale of %s: local files with other names are not seen; set LC_ALL=C.UTF-8",
            encoding,
        )


def nothing_matches(pattern: str) -> UserError:
    return UserError(
        f"ingest.paths: nothing matches '{pattern}': check the path (relative paths start where the command runs)"
    )


def _decoded(path: Any) -> str:
    """The path with its scheme, in the form of `_as_reported` and with no character encoded."""
    return _as_reported(str(path.toString()))


def _files_of(system: Any, match: Any) -> list[Any]:
    statuses = _walk(system, match) if match.isDirectory() else [match]
    return [status for status in statuses if not _is_hidden(status)]


def _walk(system: Any, folder: Any) -> list[Any]:
    """All files below a folder, but those in folders that Spark takes for hidden: what another job has not committed lies there."""
    statuses = []
    for status in system.listStatus(folder.getPath()):
        if not _is_hidden(status):
            statuses += _walk(system, status) if status.isDirectory() else [status]
    return statuses


def _is_hidden(status: Any) -> bool:
    return status.getPath().getName().startswith(("_", "."))


def _require_listable(system: Any, path: Any) -> None:
    """Raise what keeps the nearest folder that is there from being listed: a glob finds nothing in it, without a word."""
    while path is not None and not system.exists(path):
        path = path.getParent()
    if path is not None and system.getFileStatus(path).isDirectory():
        system.listStatusIterator(path).hasNext()


def exists(spark: SparkSession, uri: str) -> bool:
    """Whether a file of this name, as `_metadata.file_path` gives it, is there."""
    jvm: Any = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(unquote(uri))
    return bool(path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()).exists(path))


def changed_files(spark: SparkSession, files: Sequence[RawFile]) -> list[RawFile]:
    """Those of the files that have another size or modification time than when they were listed, or are gone."""
    jvm: Any = spark._jvm
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    changed = []
    for file in files:
        path = jvm.org.apache.hadoop.fs.Path(file.path)
        try:
            now = _raw_file(path.getFileSystem(hadoop).getFileStatus(path))
        except Exception:
            changed.append(file)
            continue
        if (now.num_bytes, now.modified_at) != (file.num_bytes, file.modified_at):
            changed.append(file)
    return changed


def _raw_file(status: Any) -> RawFile:
    path = status.getPath()
    modified_at = datetime.fromtimestamp(status.getModificationTime() / 1000, UTC).replace(tzinfo=None)
    return RawFile(path.toString(), _as_reported(path.toUri().toString()), status.getLen(), modified_at)


def _as_reported(uri: str) -> str:
    """A file's URI in the form that Spark's `_metadata.file_path` gives."""
    return re.sub(r"^file:/+", "file:/", uri)


def java_message(error: Exception) -> str:
    """What Java said, in one line; what Python said where it was not Java."""
    java = getattr(error, "java_exception", None)
    text = java.getMessage() if java is not None else str(error)
    return " ".join(str(text).split())[:200]


def read_text(spark: SparkSession, files: Sequence[RawFile]) -> DataFrame:
    """One row a line that is not blank, without a byte order mark: the file and the line."""
    lines = spark.read.text([literal(file.path) for file in files])
    line = F.when(F.startswith("value", F.lit("\ufeff")), F.substr("value", F.lit(2))).otherwise(F.col("value"))
    named = lines.select(F.col("_metadata.file_path").alias(SOURCE_FILE), line.alias(RAW))
    return named.where(F.trim(RAW) != "")


@dataclass(frozen=True)
class Unreadable:
    """A raw file that cannot be read: truncated, corrupt or not permitted."""

    uri: str
    detail: str
    is_gone: bool = False

    def __str__(self) -> str:
        return f"'{self.uri}' cannot be read ({self.detail})"


class UnreadableFilesError(UserError):
    """Some raw files cannot be read."""

    def __init__(self, files: Sequence[Unreadable]) -> None:
        super().__init__("; ".join(map(str, files)))
        self.files = list(files)


_GONE = ("FILE_NOT_EXIST", "PATH_NOT_FOUND", "FileNotFoundException")
_HAS_COLON = "Relative path in absolute URI"
_COLON = "Hadoop reads no file with a colon in its name: rename it"
_CANNOT_READ = ("FAILED_READ_FILE", "AccessControlException", "Permission denied", *_GONE)


def unreadable(file: RawFile, error: Exception) -> Unreadable:
    """What kept `file` from being read, where that is known to be the file."""
    if isinstance(error, UserError):
        return Unreadable(file.uri, str(error))
    text = str(error)
    if _HAS_COLON in text:
        return Unreadable(file.uri, _COLON)
    # Java reports a file that it may not open as one that is not found.
    if any(mark in text for mark in _GONE) and "Permission denied" not in text:
        return Unreadable(file.uri, "it is gone since it was listed", is_gone=True)
    causes = re.findall(r"Caused by: (?:[\w.$]+\.)?(\w+(?:Exception|Error)): ?([^\n]*)", text)
    if causes:
        return Unreadable(file.uri, f"{causes[-1][0]}: {causes[-1][1]}"[:200])
    return Unreadable(file.uri, java_message(error) if getattr(error, "java_exception", None) else "corrupt")


def unreadable_file(error: Exception, files: Sequence[RawFile]) -> Unreadable | None:
    """Which of `files` made a Spark job fail, where that is why it failed."""
    text = str(error)
    if not any(mark in text for mark in _CANNOT_READ):
        return None
    named = [file for file in files if any(form in text for form in _forms(file))]
    # A name may begin another one.
    return unreadable(max(named, key=lambda file: len(file.uri)), error) if named else None


def _forms(file: RawFile) -> set[str]:
    """How Spark and Hadoop may write the file's name."""
    names = (file.uri, unquote(file.uri), file.path, literal(file.path))
    return {re.sub(r"^file:/+", "/", name) for name in names}


def referenced_columns(spark: SparkSession, expression: str) -> list[tuple[str, ...]]:
    """The columns that a SQL expression names, each as its path: `user.id` gives ("user", "id").

    Raises UserError for an expression that does not parse.
    """
    session: Any = spark._jsparkSession
    try:
        leaves = session.sessionState().sqlParser().parseExpression(expression).collectLeaves()
    except Exception as error:
        raise UserError(f"'{expression}' is no valid Spark SQL expression: {java_message(error)}") from error
    paths = []
    for place in range(leaves.size()):
        leaf = leaves.apply(place)
        if leaf.getClass().getSimpleName() == "UnresolvedStar":
            raise UserError(f"'{expression}' takes whatever columns there are: name those that it is to take")
        if leaf.getClass().getSimpleName() == "UnresolvedAttribute":
            parts = leaf.nameParts()
            paths.append(tuple(parts.apply(i) for i in range(parts.size())))
    return paths
