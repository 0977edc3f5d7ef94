"""Starting Spark: what a user reads when Java is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_spark.errors import UserError
from llm_spark.spark import check_java


def fake_java(folder: Path, version: str) -> None:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    java.chmod(0o755)


@pytest.mark.parametrize("version", ["1.8.0_292", "11.0.2", "25"])
def test_a_wrong_java_is_refused_saying_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="install Java 17") as refused:
        check_java()
    assert "\n" not in str(refused.value)
    assert f"is Java {version.removeprefix('1.').split('.')[0]}:" in str(refused.value)


@pytest.mark.parametrize("version", ["17.0.15", "21"])
def test_a_fit_java_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    check_java()


def test_no_java_at_all_is_refused_saying_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `java` was found: install Java 17"):
        check_java()
