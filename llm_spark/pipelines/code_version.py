"""Which code runs: the package's version, and the commit where that is known."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import llm_spark


def code_version() -> str:
    """As `0.1.0 (a1b2c3d4e5f6)`; `with changes` where files of the package differ from the commit, the version alone where no commit is known.

    Of a git checkout its commit, of a package that pip installed from a repository the one that pip noted (PEP 610).
    """
    commit = _checked_out(Path(llm_spark.__file__).parent) or _installed()
    return f"{llm_spark.__version__} ({commit})" if commit else llm_spark.__version__


def _checked_out(package: Path) -> str:
    # A virtual environment may lie inside some other repository: only files that git knows are the checkout's.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}{' with changes' if changes else ''}" if commit else ""


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed() -> str:
    try:
        noted = metadata.distribution("llm_spark").read_text("direct_url.json")
        return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", ""))[:12]
    except (metadata.PackageNotFoundError, ValueError):
        return ""
