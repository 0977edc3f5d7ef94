"""What drift judges in, and what it finds. Without Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm_spark.config import DriftConfig, SeverityConfig
from llm_spark.transforms.drift_counts import Counts
from llm_spark.transforms.drift_kernel import Calendar

INFO = "info"

LABELS = {
    "volume": "number of events",
    "item_mix": "mix of items",
    "new_item_share": "events of new items",
    "unknown_item_share": "events of unknown items",
    "event_types": "mix of event types",
    "hours": "hours of the day",
    "sources": "mix of raw files",
    "item_ids": "form of item ids",
    "user_ids": "form of user ids",
    "missing_rate": "missing",
    "session_length": "events a session",
    "score_distribution": "certainty of predictions",
    "hit_rate": "hit rate of predictions",
}
"""Measure, in the order in which they are told -> how it is called."""


@dataclass(frozen=True)
class Finding:
    """One measure of the judged window."""

    measure: str
    """One of config.drift.MEASURES."""
    of: str
    """The column that is missing; empty for other measures."""
    window: str
    """Its days, in words."""
    value: float | None
    """PSI, a share, or a number; None where it was not measured."""
    limit: float | None
    """What the value is held against, the nearer one of two; None where it was not judged."""
    severity: str
    text: str
    """Value, limit and verdict in words."""
    not_judged: str = ""
    """Why not; empty where it was."""

    @property
    def name(self) -> str:
        return f"{self.measure} of {self.of}" if self.of else self.measure

    @property
    def label(self) -> str:
        return f"{LABELS[self.measure]} {self.of}" if self.of else LABELS[self.measure]


@dataclass(frozen=True)
class Scene:
    """What all measures of a run have in common."""

    counts: Counts
    calendar: Calendar
    settings: DriftConfig
    known: Sequence[int]
    """Earlier windows that the logs cover whole and that are not excluded, newest first."""
    with_a_past: Sequence[int]
    """Those of them, and the judged one (0), before which the logs cover so many days that an item can be called new."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Measure -> why it cannot be measured at all."""
    scored_days_back: int = 0
    """How much earlier than the other windows those are whose predictions are judged."""

    @property
    def severities(self) -> tuple[SeverityConfig, SeverityConfig]:
        """From the lower to the higher."""
        return self.settings.warning, self.settings.error

    @property
    def earlier(self) -> str:
        if self.calendar.window_days == 1:
            return f"earlier {self.calendar.as_of:%A}s"
        return f"earlier windows of {self.calendar.window_days} days"
