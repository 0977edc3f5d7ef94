"""Settings of drift: what is compared with what, when a change is told, and what then becomes of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from llm_spark.config.checks import is_date, one_of, require

MEASURES = (
    "volume",
    "item_mix",
    "new_item_share",
    "unknown_item_share",
    "event_types",
    "hours",
    "sources",
    "item_ids",
    "user_ids",
    "missing_rate",
    "session_length",
    "score_distribution",
    "hit_rate",
)
"""What is measured of each window, as data_quality and drift.rules name it."""

WARNING, ERROR = SEVERITIES = ("warning", "error")
NEVER = "never"


@dataclass(frozen=True)
class SeverityConfig:
    """When a measure is a warning: it is beyond its own earlier variation, and by so much that it matters."""

    name: ClassVar[str] = WARNING
    false_alarm_rate: float = 0.02
    """Of runs in which nothing has changed, the share that has this severity in any measure at all: it is divided among the measures."""
    min_psi: float = 0.02
    """A population stability index below this is never told, however unusual. The customary .1 and .25 (Siddiqi 2006) are meant for ten bins
    of a scorecard: of three event types, purchases rising from 6 to 10 % is .02."""
    min_share_change: float = 0.1
    """Likewise for shares, as Cohen's h (1988), the difference of 2 asin(sqrt(share)): .1 is 1 % to 2.2 %, or 10 % to 13 %; .3 is 10 % to 20 %."""
    min_volume_ratio: float = 1.25
    """Likewise for the number of events: so many times as many, or as few."""

    def __post_init__(self) -> None:
        where, rate = f"drift.{self.name}", self.false_alarm_rate
        require(0 < rate < 0.5, f"{where}.false_alarm_rate", rate, "give a share above 0 and below 0.5")
        for name, least in (("min_psi", 0), ("min_share_change", 0), ("min_volume_ratio", 1)):
            value = getattr(self, name)
            require(least <= value < math.inf, f"{where}.{name}", value, f"give a number, {least} or more")


@dataclass(frozen=True)
class ErrorConfig(SeverityConfig):
    """When it is an error: by the same marks, rarer by chance and larger."""

    name: ClassVar[str] = ERROR
    false_alarm_rate: float = 0.001
    min_psi: float = 0.1
    min_share_change: float = 0.3
    min_volume_ratio: float = 2.0


@dataclass(frozen=True)
class DriftRules:
    """What a change asks for: measure -> the least severity (warning, error, or never) at which it does.

    What withholds wins over all, for a model trained on broken data is worse than an old one; retrain wins over warm_start.
    """

    withhold: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(
            ("volume", "missing_rate", "hours", "sources", "item_ids", "user_ids"), ERROR
        )
    )
    """Signs that the data are broken: train on nothing until someone has looked."""
    retrain: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(("hit_rate", "event_types", "session_length"), ERROR)
    )
    """Signs that users behave otherwise than the model has learned: train from scratch."""
    warm_start: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "hit_rate",
                "item_mix",
                "new_item_share",
                "unknown_item_share",
                "event_types",
                "session_length",
                "score_distribution",
            ),
            WARNING,
        )
    )
    """Signs that the model is out of date: go on from its weights (train.warm_start), with rows for what is new."""

    def __post_init__(self) -> None:
        for rule in ("withhold", "retrain", "warm_start"):
            for measure, least in getattr(self, rule).items():
                key = f"drift.rules.{rule}.{measure}"
                require(measure in MEASURES, key, least, f"no such measure: choose one of {', '.join(MEASURES)}")
                one_of(key, least, (*SEVERITIES, NEVER))


@dataclass(frozen=True)
class DriftConfig:
    """The newest window of days against the same days of earlier weeks."""

    window_days: int = 1
    """Days of a window; the judged one ends with as_of. It is compared with windows of the same weekdays, whole weeks earlier. One, so that a
    fault is told the night it comes; 7 tells smaller changes, and later."""
    num_references: int = 12
    """Earlier windows looked at, at most; a quarter of a year of weeks. A third of them, four at most, are what a window is compared with; the
    others tell how far a window usually lies from those before it."""
    min_references: int = 4
    """With fewer nothing is judged, and the account says so."""
    min_users: int = 30
    """Users (sessions, for their length) in a window below which no share or mix of it is judged, nor written down."""
    num_top_items: int = 200
    """Most frequent items (sources, ...) of the earlier windows that are counted each; bounds the driver's memory."""
    num_tail_groups: int = 32
    """Groups, by a hash, into which all other items fall: enough to see a changed tail, few enough to be counted well."""
    new_item_days: int = 28
    """An item without an event in so many days before a window is new in it."""
    max_unknown_rise: float = 0.1
    """A warning where the share of events with items that the vocabulary lacks lies by more than this above its mean in the earlier windows."""
    hit_k: int = 10
    """Past predictions: whether a user's next event is among the first so many items. At most score.k tells something."""
    hit_days: int = 7
    """Days within which a user's next event must come to count; predictions are judged when they are over."""
    exclude_dates: list[str] = field(default_factory=list)
    """UTC dates that are neither judged nor compared with: a known fault, a holiday that comes once a year. Without it a broken day counts as
    usual variation for the next num_references weeks."""
    warning: SeverityConfig = field(default_factory=SeverityConfig)
    """Look at it."""
    error: ErrorConfig = field(default_factory=ErrorConfig)
    """Something is broken, or nothing is as it was."""
    rules: DriftRules = field(default_factory=DriftRules)
    fail_on_error: bool = False
    """End with exit code 3 where a measure is an error. Off: the night goes on with the models that are there, and data_quality tells."""

    def __post_init__(self) -> None:
        for name in ("window_days", "min_users", "num_top_items", "num_tail_groups", "new_item_days", "hit_k", "hit_days"):  # fmt: skip
            require(getattr(self, name) > 0, f"drift.{name}", getattr(self, name), "give a number above 0")
        # Fewer leave nothing to calibrate on.
        require(self.min_references >= 4, "drift.min_references", self.min_references, "give 4 or more")
        enough = self.num_references >= self.min_references
        remedy = f"give drift.min_references ({self.min_references}) or more"
        require(enough, "drift.num_references", self.num_references, remedy)
        rise = self.max_unknown_rise
        require(0 < rise <= 1, "drift.max_unknown_rise", rise, "give a share above 0, at most 1")
        for text in self.exclude_dates:
            require(is_date(text), "drift.exclude_dates", text, "write a date such as 2026-01-31")
