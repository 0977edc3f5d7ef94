"""All checks, the fast ones first: python -m tests

Lint, format, import laws, types; then the tests that need seconds; then integration (Delta, processes, real data). Stops at the first failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(sys.executable).parent

# A file's tests stay together, for they share what they set up. Each process has a Spark session of its own, of which planning is one
# thread's work: two of them use two cores where one would leave a core idle.
PARALLEL = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder"]

# torch's threads of one process would wait for each other on cores that the other process works on.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

CHECKS = {
    "lint": [str(HERE / "ruff"), "check", "."],
    "format": [str(HERE / "ruff"), "format", "--check", "."],
    "import laws": [str(HERE / "lint-imports"), "--no-logo"],
    "types": [str(HERE / "mypy")],
    "fast tests": [sys.executable, "-m", "pytest", "--ignore=tests/integration", "-m", "not slow", *PARALLEL],
    "integration tests": [
        *(sys.executable, "-m", "pytest", "tests/integration"),
        *("-m", "not slow", "--durations=10", *PARALLEL),
    ],
}


def main() -> int:
    for name, command in CHECKS.items():
        began = time.monotonic()
        print(f"== {name}: {' '.join(command)}", flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False, env=ONE_THREAD | os.environ).returncode
        print(f"== {name}: {'failed' if code else 'passed'} in {time.monotonic() - began:.0f} s", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
