"""Missing values of a user's history, filled in numpy. It needs no Spark.

`nan` stands for a missing value. A value may be filled from what stands before it always; from what stands after it only where nobody who
reads it could not have read the later value too: `FilledValues.at` is told up to where that is so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ValueFill:
    """keep: missing values stay. constant: `constant` takes their place. forward: the user's last known value. interpolate: within one
    session the line in time between the known values on either side, elsewhere as forward."""

    rule: str = "keep"
    constant: float = math.nan

    @property
    def looks_back(self) -> bool:
        """Whether a missing value may be filled from sessions before its own."""
        return self.rule in ("forward", "interpolate")

    @classmethod
    def of(cls, rule: str) -> ValueFill:
        """From the text of `ingest.missing.value`; reject and drop leave nothing to fill."""
        if rule in ("forward", "interpolate"):
            return cls(rule)
        if rule in ("keep", "reject", "drop"):
            return cls("keep")
        return cls("constant", float(rule))


KEEP = ValueFill()


@dataclass(frozen=True)
class FilledValues:
    """Values of many users' steps after filling, as far as they may be known."""

    looking_back: np.ndarray
    """float64: filled from earlier steps alone; nan where there is nothing to fill with."""
    on_the_line: np.ndarray
    """float64: the interpolated value; meaningful where `known_again` is a step."""
    known_again: np.ndarray
    """int64: the later step that an interpolated value depends on; larger than any step where none."""

    def at(self, steps: np.ndarray, may_depend_before: np.ndarray) -> np.ndarray:
        """Values of `steps`, none of which depends on a step at or after its `may_depend_before`, itself apart."""
        interpolated = self.known_again[steps] < may_depend_before
        return np.where(interpolated, self.on_the_line[steps], self.looking_back[steps])


def fill_values(
    values: np.ndarray, times: np.ndarray, begins_user: np.ndarray, begins_session: np.ndarray, fill: ValueFill
) -> FilledValues:
    """Fill the steps of whole users, one after another.

    `values` float64, nan where missing; `times` int64, ascending within a session; `begins_user`, `begins_session`: bool, whether a step is
    the first of a user, of a session (a user's first step begins a session too).
    """
    steps = np.arange(len(values))
    known = ~np.isnan(values)
    looking_back, on_the_line = values, values
    known_again = np.full(len(values), _NEVER, dtype=np.int64)
    if fill.rule == "constant":
        looking_back = np.where(known, values, fill.constant)
    if fill.looks_back:
        last_known = np.maximum.accumulate(np.where(known, steps, -1))
        user_start = np.maximum.accumulate(np.where(begins_user, steps, 0))
        looking_back = np.where(last_known >= user_start, values[last_known], np.nan)
    if fill.rule == "interpolate" and len(values):
        session_start = np.maximum.accumulate(np.where(begins_session, steps, 0))
        session_end = _next(np.append(begins_session[1:], True)) + 1
        next_known = _next(known)
        between = ~known & (last_known >= session_start) & (next_known < session_end)
        known_again[between] = next_known[between]
        on_the_line = values.copy()
        on_the_line[between] = _line(values, times, last_known[between], next_known[between], steps[between])
    return FilledValues(looking_back, on_the_line, known_again)


def _next(marks: np.ndarray) -> np.ndarray:
    """The first marked step at or after each step; the number of steps where none."""
    steps = np.where(marks, np.arange(len(marks)), len(marks))
    return np.minimum.accumulate(steps[::-1])[::-1]


def _line(
    values: np.ndarray, times: np.ndarray, before: np.ndarray, after: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    seconds = times[after] - times[before]
    # Between two events of the same instant the earlier value is held.
    share = np.divide(times[steps] - times[before], seconds, out=np.zeros(len(steps)), where=seconds > 0)
    return values[before] * (1 - share) + values[after] * share
