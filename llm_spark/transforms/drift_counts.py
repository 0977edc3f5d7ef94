"""What is counted for drift: the numbers that pass from Spark, or from a simulation, to drift_findings. In numpy, without Spark.

Shapes: W windows, the judged one first; C categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOTALS, HITS, VALUELESS = "totals", "hits", "valueless"
"""Counts that are no mix: of events, of predictions that came true, and of the events without a value by type."""
EVENTS, USERS, NEW_ITEMS, UNKNOWN_ITEMS, ITEM_SQUARES = "events", "users", "new items", "unknown items", "item squares"
MISSING = "missing "
"""Categories of the totals. ITEM_SQUARES sums over items the squared number of events; MISSING is followed by the attribute that is missing."""
SUMS_OF_HITS = ("num_users", "trials", "hits", "trials_squared", "hits_squared", "hits_trials")
"""Categories of the hits, as drift_kernel.UserSums."""

SESSION_LENGTHS = (1, 2, 3, 4, 5, 7, 10, 15, 25, 50, 100)
"""Least number of events of each class of sessions."""


class Count(NamedTuple):
    """One counted number: of a category, or of a group of rare ones."""

    measure: str
    window: int
    category: str | None
    tail_group: int | None
    num: int


@dataclass(frozen=True)
class Counts:
    """What was counted in each window."""

    num_windows: int
    by_measure: Mapping[str, Mapping[str | int, NDArray[np.float64]]]
    """Measure -> category, or number of a group of rare ones -> counts_W."""

    @classmethod
    def of(cls, counts: Iterable[Count], num_windows: int) -> Counts:
        by_measure: dict[str, dict[str | int, NDArray[np.float64]]] = {}
        for count in counts:
            key = count.category if count.category is not None else int(count.tail_group or 0)
            of_measure = by_measure.setdefault(count.measure, {})
            of_measure.setdefault(key, np.zeros(num_windows))[count.window] += count.num
        return cls(num_windows, by_measure)

    def of_category(self, measure: str, category: str | int) -> NDArray[np.float64]:
        """counts_W; 0 where nothing was counted."""
        return self.by_measure.get(measure, {}).get(category, np.zeros(self.num_windows))

    def categories(self, measure: str) -> list[str | int]:
        """In a fixed order: the named ones, then the groups of rare ones."""
        return sorted(self.by_measure.get(measure, {}), key=lambda key: (isinstance(key, int), str(key).zfill(9)))

    def mix(self, measure: str) -> NDArray[np.float64]:
        """counts_WC, in the order of `categories`."""
        columns = [self.of_category(measure, category) for category in self.categories(measure)]
        return np.stack(columns, axis=1) if columns else np.zeros((self.num_windows, 0))
