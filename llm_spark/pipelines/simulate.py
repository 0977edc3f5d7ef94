"""simulate: raw logs of users whose tastes are known."""

from __future__ import annotations

from pathlib import Path

from llm_spark import config as settings
from llm_spark.errors import UsageError
from llm_spark.logs import log, progress
from llm_spark.simulation import LogsWritten, SimulationConfig, preset, write_logs


def simulate(folder: Path, form: str | None, overrides: list[str]) -> LogsWritten:
    """Write raw logs into `folder` and say what is in them. The same settings give the same bytes.

    `overrides` are settings `key=value`; `profile=NAME` takes those of a trade to begin with. `form` None is what that
    trade's logs are usually written as.
    """
    simulation = simulation_config(overrides)
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


def simulation_config(overrides: list[str]) -> SimulationConfig:
    """The settings that `profile=NAME` and further `key=value` give. Raises UsageError."""
    name, others = "retail", []
    for override in overrides:
        key, separator, value = override.partition("=")
        if key == "profile" and separator:
            name = value
        else:
            others.append(override)
    try:
        trade = preset(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return settings.from_overrides(trade, others)
