"""simulate: raw logs of users whose tastes are known."""

from __future__ import annotations

from pathlib import Path

from llm_spark import config as settings
from llm_spark.errors import UsageError
from llm_spark.logs import log, progress
from llm_spark.simulation import LogsWritten, SimulationConfig, write_logs


def simulate(folder: Path, form: str, overrides: list[str]) -> LogsWritten:
    """Write raw logs into `folder` and say what is in them. The same settings give the same bytes."""
    simulation: SimulationConfig = settings.from_overrides(SimulationConfig, overrides)
    with progress("simulate"):
        try:
            written = write_logs(simulation, folder, form)
        except ValueError as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            raise UsageError(f"logs cannot be written to '{folder}': {error.strerror}") from error
    planted = ", ".join(
        f"{number:,} {trouble.replace('_', ' ')}" for trouble, number in written.num_planted.items() if number
    )
    log.info("simulate: %d files in '%s', %s lines", len(written.files), folder, f"{written.num_lines:,}")
    log.info(
        "  %s events of %s users in %s sessions",
        *(f"{n:,}" for n in (written.num_clean_events, written.num_users, written.num_sessions)),
    )
    log.info("  troubles planted: %s", planted)
    return written
