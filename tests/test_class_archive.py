"""The class-data archive: written once by one session, taken by the next ones, never half of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_spark import spark as spark_room
from llm_spark.class_archive import MAX_ARCHIVES, ClassArchive

WHOLE = (0xF00BABA8).to_bytes(4, sys.byteorder) + b"classes"


def archive(folder: Path, java: str = "17") -> ClassArchive:
    return ClassArchive(folder, java, ["spark.jar", "delta.jar"])


def end_session(of: ClassArchive, content: bytes) -> None:
    """Let a stand-in for the JVM write `content` to the file that the options name, as Spark's gateway ends: when its input is closed."""
    script = "import pathlib, sys; sys.stdin.read(); pathlib.Path(sys.argv[1]).write_bytes(bytes.fromhex(sys.argv[2]))"
    jvm = subprocess.Popen([sys.executable, "-c", script, str(of._written), content.hex()], stdin=subprocess.PIPE)
    of._keep(jvm)
    assert jvm.returncode == 0


def test_the_first_session_writes_what_the_next_ones_take(tmp_path: Path) -> None:
    first = archive(tmp_path / "with spaces")
    assert f'"-XX:ArchiveClassesAtExit={first._written}"' in first.java_options()
    end_session(first, WHOLE)
    assert first.path.read_bytes() == WHOLE
    assert f'"-XX:SharedArchiveFile={first.path}"' in archive(tmp_path / "with spaces").java_options()
    # Another Java, or other JARs, have an archive of their own.
    assert "ArchiveClassesAtExit" in archive(tmp_path / "with spaces", java="21").java_options()


def test_one_process_writes_and_others_start_without(tmp_path: Path) -> None:
    writes = archive(tmp_path)
    assert writes.java_options()
    assert archive(tmp_path).java_options() == ""


@pytest.mark.parametrize("content", [b"", bytes(100)])
def test_an_archive_that_is_not_whole_is_not_kept(tmp_path: Path, content: bytes) -> None:
    cut_off = archive(tmp_path)
    cut_off.java_options()
    end_session(cut_off, content)
    assert not list(tmp_path.glob("*.jsa"))
    assert not cut_off._written.exists()


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert archive(tmp_path / "file" / "cache").java_options() == ""


def test_old_archives_are_removed_and_what_killed_sessions_left(tmp_path: Path) -> None:
    for age in range(MAX_ARCHIVES + 1):
        old = tmp_path / f"classes-{age}.jsa"
        old.write_bytes(WHOLE)
        os.utime(old, (1000 - age, 1000 - age))
    newest = archive(tmp_path)
    left_behind = newest.path.with_suffix(".1")
    left_behind.write_bytes(WHOLE)
    newest.java_options()
    end_session(newest, WHOLE)
    assert {path.name for path in tmp_path.glob("*.jsa")} == {newest.path.name, "classes-0.jsa", "classes-1.jsa"}
    assert not left_behind.exists()


def test_a_session_of_spark_starts_from_the_archive_of_the_one_before(tmp_path: Path) -> None:
    script = """
import pathlib, sys
from llm_spark import spark as room
from llm_spark.config import SparkConfig
room._cache_folder = lambda: pathlib.Path(sys.argv[1]) / "jars"
session = room.session(SparkConfig(master="local[1]", driver_memory="1g", java_options="-XX:TieredStopAtLevel=1"))
maps = pathlib.Path(f"/proc/{session.sparkContext._gateway.proc.pid}/maps").read_text()
print("COUNT", session.range(3).count(), "MAPPED", f"{sys.argv[1]}/classes-" in maps)
session.stop()
"""
    (tmp_path / "jars").mkdir()
    for jar in spark_room.delta_jars():
        (tmp_path / "jars" / Path(jar).name).symlink_to(jar)
    said = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
        ).stdout
        for _ in range(2)
    ]
    assert said == ["COUNT 3 MAPPED False\n", "COUNT 3 MAPPED True\n"]
