"""The parts of the test positions that metrics are given for beside all of them.

Each dimension cuts the positions once, by one number of theirs; a position lies in at most one slice of each. Every slice is named here.

Shape suffixes: P positions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MINUTE, HOUR, DAY, WEEK = 60, 3_600, 86_400, 604_800


@dataclass(frozen=True)
class Dimension:
    """Slices by the column `of`: the i-th holds from `edges[i]` to below the next edge; what is below the first is in none."""

    of: str
    edges: tuple[int, ...]
    names: tuple[str, ...]
    is_own: bool = False
    """Whether a recommender's own answer decides where a position lies: two recommenders then have nothing to compare there."""


CONFIDENCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Bounds of the probability of the first item of a list. Among thousands of items it is mostly small: equal widths would put all into one bin."""

DIMENSIONS = (
    # Whether short-term memory has anything to go by: the first item of a session is predicted from the long-term memory alone.
    Dimension("session_position", (0, 1), ("first_in_session", "within_session")),
    Dimension(
        "session_position",
        (1, 2, 5, 10),
        ("session_position_1", "session_position_2_to_4", "session_position_5_to_9", "session_position_10_or_more"),
    ),
    # Sessions of the user before this one, as far back as the row of sequences goes.
    Dimension("sessions_before", (0, 1, 5), ("history_new", "history_few", "history_many")),
    Dimension(
        "gap_seconds",
        (0, MINUTE, HOUR, DAY, WEEK),
        ("gap_below_minute", "gap_below_hour", "gap_below_day", "gap_below_week", "gap_week_or_more"),
    ),
    # Of the item that came; 0 where the vocabulary lacks it.
    Dimension(
        "popularity_decile",
        tuple(range(11)),
        ("item_unknown", *(f"item_popularity_decile_{decile}" for decile in range(1, 11))),
    ),
    Dimension(
        "confidence_bin",
        tuple(range(1, len(CONFIDENCES) + 2)),
        tuple(f"confidence_{bin}" for bin in range(1, len(CONFIDENCES) + 2)),
        is_own=True,
    ),
)

ALL = "all"
SLICES = (ALL, *(name for dimension in DIMENSIONS for name in dimension.names))
"""A slice's number is its place here; 0 holds every position."""

CONFIDENCE_SLICES = tuple(SLICES.index(f"confidence_{bin}") for bin in range(1, len(CONFIDENCES) + 2))
OWN_SLICES = frozenset(SLICES.index(name) for dimension in DIMENSIONS if dimension.is_own for name in dimension.names)


def confidence_bins(confidence_P: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin, from 1, of each probability; 0 where there is none (NaN)."""
    bins = 1 + np.searchsorted(CONFIDENCES, confidence_P, side="right")
    return np.where(np.isnan(confidence_P), 0, bins)


def slices_of(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The numbers [P, D] of the slices that each position lies in beside all; 0 where it is in none of a dimension."""
    numbers, first = [], 1
    for dimension in DIMENSIONS:
        place_P = np.searchsorted(dimension.edges, columns[dimension.of], side="right") - 1
        numbers.append(np.where(place_P < 0, 0, first + place_P))
        first += len(dimension.names)
    return np.stack(numbers, axis=1)
