"""The reader on the oldest and the newest pyarrow that pyproject.toml allows, and on Petastorm 0.12.1 and 0.13.1.

Each pair is installed into a folder of its own that stands before the environment's packages on the path.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_EPOCHS = 240

pytestmark = pytest.mark.slow


def pyarrow_bounds() -> tuple[str, str]:
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    [bounds] = [line.removeprefix("pyarrow>=") for line in dependencies if line.startswith("pyarrow>=")]
    oldest, newest = bounds.split(",<")
    return f"pyarrow=={oldest}.*" if oldest.isdigit() else f"pyarrow=={oldest}", f"pyarrow<{newest}"


def install(folder: Path, *requirements: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install {requirements} here: {done.stderr.strip().splitlines()[-1]}")


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


VERSIONS = """
import pyarrow
import llm_spark.reader.compat, petastorm
print(pyarrow.__version__, petastorm.__version__)
"""


@pytest.mark.parametrize("petastorm", ["0.12.1", "0.13.1"])
@pytest.mark.parametrize("bound", ["oldest", "newest"])
def test_no_row_is_lost_on_any_allowed_pyarrow_with_either_petastorm(
    tmp_path: Path, bound: str, petastorm: str
) -> None:
    pyarrow = pyarrow_bounds()[bound == "newest"]
    install(tmp_path, pyarrow, f"petastorm=={petastorm}")
    versions = run(tmp_path, "-c", VERSIONS).split()
    assert versions[1] == petastorm
    if bound == "oldest":
        assert versions[0].startswith(pyarrow.removeprefix("pyarrow==").removesuffix(".*"))
    for pool, num_epochs in [("thread", NUM_EPOCHS), ("process", 6)]:
        stdout = run(tmp_path, "-m", "tests.benchmarks.reader_stress", "--epochs", str(num_epochs), "--pool", pool)
        assert f"{num_epochs} epochs of 437 rows: every row exactly once in each" in stdout
