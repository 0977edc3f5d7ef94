"""Starting Spark: what a user reads when Java is missing or wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_spark import spark as spark_room
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


def test_processes_that_start_at_once_on_a_new_machine_fetch_the_jars_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar, both_are_there, fetches = tmp_path / "io.delta_x.jar", threading.Barrier(2), []
    jar.write_text("")

    def resolve() -> list[str]:
        fetches.append(1)
        return [str(jar)]

    def jars() -> list[str]:
        both_are_there.wait(60)
        return spark_room.delta_jars()

    monkeypatch.setattr(spark_room, "_cache_folder", lambda: tmp_path / "cache" / "jars-1.2")
    monkeypatch.setattr(spark_room, "_resolve", resolve)
    with ThreadPoolExecutor(2) as pool:
        found = [future.result(60) for future in [pool.submit(jars) for _ in range(2)]]
    assert found == [[str(tmp_path / "cache" / "jars-1.2" / jar.name)]] * 2
    assert len(fetches) == 1


def test_times_are_utc_whatever_the_zone_of_the_machine() -> None:
    script = """
from datetime import datetime
from pyspark.sql import functions as F
from llm_spark import spark
from llm_spark.config import SparkConfig
session = spark.session(SparkConfig(master="local[1]", driver_memory="1g", java_options="-XX:TieredStopAtLevel=1"))
row = session.range(1).select(
    F.lit("2025-01-03 00:00:00").cast("timestamp").alias("back"), F.unix_seconds(F.lit(datetime(2025, 1, 3))).alias("there")
).first()
print("FOUND", row["back"], row["there"])
session.stop()
"""
    environment = dict(os.environ, TZ="America/New_York")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert "FOUND 2025-01-03 00:00:00 1735862400" in done.stdout, done.stderr[-2000:]
