"""Settings of score: how many next items each user gets, which may be offered, and what stands in where nothing is known or sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_spark.config.checks import require
from llm_spark.errors import UsageError

MAX_REASONS = 20
"""Each is one more join with the vocabulary, and more are read by nobody."""

NONE, SEEN = "none", "seen"


@dataclass(frozen=True)
class ScoreConfig:
    """Predictions for every user."""

    as_of: str | None = None
    """UTC date: only events before its end are used. Not given: the day of the newest event."""
    k: int = 10
    """Recommended next items for each user; fewer where fewer may be offered."""
    batch_rows: int = 256
    """Users scored at a time in a Python worker; bounds its memory."""
    exclude: Any = NONE
    """Which items of the user's recent history are not offered again. none: all may be, for in most trades people come back to what they know.
    seen: no item of it is. Or a list of event types, such as [purchase]: those that had such an event."""
    allow_items: str | None = None
    """Only these items are offered: a table of the warehouse, or a path (below the warehouse, else from where the command runs) to Delta,
    Parquet or CSV, with a column item_id. Not given: all that the model knows. Probabilities stay those among all items."""
    deny_items: str | None = None
    """These items are never offered: likewise."""
    max_per_category: int = 0
    """At most so many items of one category in a list; 0 for no bound. Items without a category are not bounded."""
    category_attribute: str | None = None
    """The name of ingest.columns.attributes that holds an item's category, for max_per_category."""
    min_probability: float = 0.0
    """An item less probable than this for a user is not offered to him; 0 offers any. A user with none left has abstained: one row says so."""
    fallback_days: int = 7
    """Users of whom the model knows nothing get the items with the most events in so many days before the night, marked as fallback; a week,
    so that every weekday counts once. 0: no fallback, and the model answers for all who have a history, from its times and types alone."""
    reasons: int = 0
    """Past items named as the reasons for a recommended one, and for each outcome; 0 for none. Not given unasked: see `explained`."""
    explained: int = 1
    """Of each user's list the first so many get reasons. With 1 scoring takes about 6 times as long as without reasons, with 3 twelve times."""

    def __post_init__(self) -> None:
        require(self.k > 0, "score.k", self.k, "give a number above 0")
        require(self.explained > 0, "score.explained", self.explained, "give a number above 0")
        require(0 <= self.reasons <= MAX_REASONS, "score.reasons", self.reasons, f"give 0 to {MAX_REASONS}")
        require(self.batch_rows > 0, "score.batch_rows", self.batch_rows, "give a number above 0")
        _ = self.excluded_types
        for name in ("max_per_category", "fallback_days"):
            require(getattr(self, name) >= 0, f"score.{name}", getattr(self, name), "give 0 or more")
        ok = 0 <= self.min_probability < 1
        require(ok, "score.min_probability", self.min_probability, "give a probability from 0 to below 1")
        named = not self.max_per_category or self.category_attribute is not None
        require(named, "score.max_per_category", self.max_per_category, "name the category in score.category_attribute")

    @property
    def excluded_types(self) -> tuple[str, ...] | None:
        """The event types whose items are not offered again; None for all types. UsageError where `exclude` is none of its forms."""
        if self.exclude in (NONE, SEEN):
            return () if self.exclude == NONE else None
        if isinstance(self.exclude, list) and self.exclude and all(isinstance(name, str) for name in self.exclude):
            return tuple(self.exclude)
        raise UsageError(
            f"score.exclude is {self.exclude!r}: give none, seen, or a list of event types such as [purchase]"
        )
