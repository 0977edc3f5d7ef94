"""Listing raw files, files and folders that may not be read, and lines that were not whole: on a bare JVM, as another user than root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

from llm_spark.errors import UserError
from llm_spark.tables import raw, raw_csv

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534

# What a process without rights is told. It imports everything before it gives its rights up: its Python may lie in somebody's home.
AS_NOBODY = f"""
import json, os, sys, unittest
import numpy, pandas, pyarrow, pyspark.testing.utils
from types import SimpleNamespace
from pyspark.java_gateway import launch_gateway
from llm_spark.tables import raw, raw_csv

folder = sys.argv[1]
if os.getuid() == 0:
    os.setgid({NOBODY})
    os.setuid({NOBODY})
jvm = launch_gateway().jvm
context = SimpleNamespace(_jsc=SimpleNamespace(hadoopConfiguration=jvm.org.apache.hadoop.conf.Configuration))
spark = SimpleNamespace(_jvm=jvm, sparkContext=context)
told = {{}}
for pattern in ("closed", "closed/*.csv", "closed/below", "files"):
    try:
        told[pattern] = [file.uri.rsplit("/", 1)[1] for file in raw.list_files(spark, [f"{{folder}}/{{pattern}}"]).files]
    except Exception as error:
        told[pattern] = f"{{type(error).__name__}}: {{error}}"
try:
    raw_csv.read_csv(spark, raw.list_files(spark, [f"{{folder}}/files"]).files, ",")
except raw.UnreadableFilesError as error:
    told["csv"] = [[file.uri.rsplit("/", 1)[1], file.detail, file.is_gone] for file in error.files]
print("TOLD" + json.dumps(told))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="llm_spark-raw-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_and_files_that_may_not_be_read_are_named_and_are_not_the_warehouse(open_folder: Path) -> None:
    for name in ("closed/below", "files"):
        (open_folder / name).mkdir(parents=True)
    for name in ("a.csv", "b.csv", "c.csv"):
        (open_folder / "files" / name).write_text("user,item,time\n")
    (open_folder / "files" / "a.csv").chmod(0)
    (open_folder / "files" / "c.csv").chmod(0)
    (open_folder / "closed").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(open_folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    if not lines:
        pytest.skip(f"no JVM starts as another user here: {done.stderr[-300:]}")
    told = json.loads(lines[0].removeprefix("TOLD"))
    for pattern in ("closed", "closed/*.csv", "closed/below"):
        place = open_folder / pattern
        denied = f"{open_folder / 'closed'}: Permission denied: let this account read it"
        assert told[pattern] == f"UserError: ingest.paths: '{place}' cannot be listed: {denied}"
    assert told["files"] == ["a.csv", "b.csv", "c.csv"]
    denied_files = [[name, f"{open_folder}/files/{name} (Permission denied)", False] for name in ("a.csv", "c.csv")]
    assert told["csv"] == denied_files, "all of them are named at once"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for name in ("2026-01/a.csv", "2026-01/b.csv", "c.csv", "_hidden/d.csv"):
        (tmp_path / "logs é" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs é" / name).write_text("user,item\n")
    (tmp_path / "logs é" / "none").mkdir()
    return tmp_path / "logs é"


def test_patterns_that_overlap_give_each_file_once_and_one_that_matches_nothing_is_told(
    spark: SparkSession, logs: Path
) -> None:
    patterns = [f"{logs}", f"{logs}/2026-*", f"{logs}/c.csv", f"{logs}/none", f"{logs}/2027-*/[ab].csv"]
    found = raw.list_files(spark, patterns)
    names = [Path(file.path).name for file in found.files]
    assert names == ["a.csv", "b.csv", "c.csv"]
    assert list(found.unmatched) == patterns[3:]
    beginning = raw._decoded(spark._jvm.org.apache.hadoop.fs.Path(f"file:{logs}"))  # type: ignore[union-attr]
    assert found.unmatched[patterns[4]].fullmatch(f"{beginning}/2027-01/a.csv")
    assert not found.unmatched[patterns[4]].fullmatch(f"{beginning}/2026-01/a.csv")


def test_a_wildcard_stands_for_no_folder_that_spark_takes_for_hidden(spark: SparkSession, logs: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [Path(file.path).name for file in raw.list_files(spark, [f"{logs}/{pattern}"]).files]

    assert names("*") == ["a.csv", "b.csv", "c.csv"]
    assert names("*/*.csv") == ["a.csv", "b.csv"]
    assert names("_hidden") == names("_hidden/*") == ["d.csv"], "who names it means it"


def test_what_hadoop_cannot_do_with_a_colon_in_a_name_is_told(spark: SparkSession, tmp_path: Path) -> None:
    for name in ("2025-01-01T10:00:00.csv", "b.csv"):
        (tmp_path / name).write_text("user,item\nu,i\n")
    told = "Hadoop reads no file with a colon in its name: rename it"
    with pytest.raises(UserError, match=f"cannot be listed: .*: {told}"):
        raw.list_files(spark, [f"{tmp_path}/*.csv"])
    files = raw.list_files(spark, [f"{tmp_path}"]).files
    with pytest.raises(Exception, match="Relative path") as error:
        raw.read_text(spark, files).collect()
    found = raw.unreadable_file(error.value, files)
    assert found is not None
    assert (found.uri, found.detail) == (files[0].uri, told)


def test_java_under_a_locale_without_other_characters_is_told(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    system = spark._jvm.System  # type: ignore[union-attr]
    encoding = system.getProperty("sun.jnu.encoding")
    raw.tell_of_hidden_names(spark)
    assert not caplog.messages
    try:
        system.setProperty("sun.jnu.encoding", "ANSI_X3.4-1968")
        raw.tell_of_hidden_names(spark)
    finally:
        system.setProperty("sun.jnu.encoding", encoding)
    (told,) = caplog.messages
    assert told.endswith("set LC_ALL=C.UTF-8")


@pytest.mark.parametrize(
    ("then", "now", "torn"),
    [
        ("h\nu,1", "h\nu,19.9\n", "u,1"),
        ("h\nu,1", "h\nu,1\n", None),
        ("h\nu,1", "h\nu,1\r\nv,2\n", None),
        ("h\nu,1\n", "h\nu,1\nv,2\n", None),
        ("h\r\nu,1\r", "h\r\nu,1\r\nv,2", None),
        ("h", "header\nu,1\n", None),
        ("h\nu,1\nv,é", "h\nu,1\nv,été", "v,é"),
        ("", "h\nu,1\n", None),
    ],
)
def test_a_line_that_went_on_after_a_file_had_so_many_bytes_is_known_as_it_was(
    spark: SparkSession, tmp_path: Path, then: str, now: str, torn: str | None
) -> None:
    (tmp_path / "a.csv").write_bytes(now.encode())
    (file,) = raw.list_files(spark, [str(tmp_path)]).files
    assert raw_csv._torn_line(spark, file, len(then.encode())) == (torn or "")


def test_what_cannot_be_listed_at_all_is_named() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no such file system")

    path = SimpleNamespace(getFileSystem=Broken().__getattr__)
    hadoop = SimpleNamespace(fs=SimpleNamespace(Path=lambda _: path))
    jvm = SimpleNamespace(org=SimpleNamespace(apache=SimpleNamespace(hadoop=hadoop)))
    context = SimpleNamespace(_jsc=SimpleNamespace(hadoopConfiguration=dict))
    spark: Any = SimpleNamespace(_jvm=jvm, sparkContext=context)
    with pytest.raises(UserError, match=r"ingest\.paths: 'x://y' cannot be listed: no such file system"):
        raw.list_files(spark, ["x://y"])
