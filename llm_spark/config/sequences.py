"""Settings of sessionize and sequences: from events to what a model reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llm_spark.config.checks import one_of, require

_MAX_SECONDS = 1_000_000_000
"""Beyond it times would leave what a calendar and 64 bits of microseconds can tell."""


@dataclass(frozen=True)
class BotsConfig:
    """What no human does. A session beyond a limit goes, whole and as it was, to sessions_set_aside; 0 is no limit."""

    max_events_per_minute: float = 0.0
    """Mean over a session; one shorter than a minute counts as a minute, so that a few quick clicks are no bot."""
    max_events: int = 0
    """In one session. A session that sessionize.max_events cuts is judged piece by piece: the last one may be short enough to stay."""
    max_events_per_day: int = 0
    """Of one user on one UTC day; all sessions of that user that touch the day are set aside. Under it every run rebuilds all sessions, for a
    new event may condemn sessions that it does not touch."""

    def __post_init__(self) -> None:
        for name in ("max_events_per_minute", "max_events", "max_events_per_day"):
            ok = 0 <= getattr(self, name) < math.inf
            require(ok, f"sessionize.bots.{name}", getattr(self, name), "give a number above 0, or 0 for no limit")

    @property
    def any_limit(self) -> bool:
        return bool(self.max_events_per_minute or self.max_events or self.max_events_per_day)


@dataclass(frozen=True)
class SessionizeConfig:
    """From `events` to `sessions`."""

    gap_seconds: int = 1800
    """A pause strictly longer than this opens a new session. Half an hour is the web's custom."""
    max_length_seconds: int = 86_400
    """A session longer than this from its first event is cut there."""
    max_events: int = 1_000
    """A session with more events than this is cut there."""
    day_cut: str | None = None
    """A zone such as Europe/London at whose midnight a session ends. Not given: a session may span midnight, as a visitor does."""
    num_buckets: int = 8
    """Partitions of each month of the sessions table, by a hash of the user; also the tasks that build it: at least one a core."""
    bots: BotsConfig = field(default_factory=BotsConfig)
    collapse_repeats: bool = False
    """Of events with the same item and type directly after one another in a session keep the first; `sessions.num_collapsed` counts the others."""

    def __post_init__(self) -> None:
        for name in ("gap_seconds", "max_length_seconds", "max_events", "num_buckets"):
            require(getattr(self, name) > 0, f"sessionize.{name}", getattr(self, name), "give a number above 0")
        for name in ("gap_seconds", "max_length_seconds"):
            ok = getattr(self, name) <= _MAX_SECONDS
            require(ok, f"sessionize.{name}", getattr(self, name), f"give {_MAX_SECONDS:,} (31 years) at most")
        remedy = f"sessions are cut at sessionize.max_events ({self.max_events}) before: give less than that"
        can_be = self.bots.max_events < self.max_events
        require(can_be, "sessionize.bots.max_events", self.bots.max_events, remedy)


@dataclass(frozen=True)
class ClipValuesConfig:
    """Outliers of `value` are set to the bounds of what is usual for their event type, fitted on the training window alone.

    The fitted bounds stand in data_quality, in the sequences' origin and in the model, which scores under the bounds that it was trained with.
    """

    method: str = "none"
    """none, mad (median +- num_mads times the median absolute deviation) or quantile (low_quantile to high_quantile)."""
    num_mads: float = 10.0
    """For a bell curve 1 is 0.67 standard deviations. Where more than half of a type's values are equal the deviation is 0: then 0.845 times the
    mean absolute deviation stands in for it, which is the same for a bell curve (Iglewicz and Hoaglin 1993)."""
    low_quantile: float = 0.001
    high_quantile: float = 0.999
    min_values: int = 30
    """Event types with fewer values than this in the training window are not clipped."""

    def __post_init__(self) -> None:
        one_of("sequences.clip_values.method", self.method, ("none", "mad", "quantile"))
        finite = 0 < self.num_mads < math.inf
        require(finite, "sequences.clip_values.num_mads", self.num_mads, "give a number above 0")
        ordered = 0 <= self.low_quantile < self.high_quantile <= 1
        remedy = "give a share from 0, below sequences.clip_values.high_quantile, which is 1 at most"
        require(ordered, "sequences.clip_values.low_quantile", self.low_quantile, remedy)
        require(self.min_values > 0, "sequences.clip_values.min_values", self.min_values, "give a number above 0")


SPLIT_KINDS = ("time", "leave_last_session_out", "leave_last_event_out")


@dataclass(frozen=True)
class SequencesConfig:
    """From `sessions` to `vocabulary` and `sequences`."""

    split: str = "time"
    """time: training ends at train_until, validation at validation_until, and nothing later is known to training. leave_last_session_out,
    leave_last_event_out: each user's last session (event) is test and the one before it validation, as in many papers; a user with fewer
    than three is trained on whole. There other users' training may be later than a user's test: only `time` measures what a night will do."""

    max_tokens: int = 200
    """The longest row. A longer history becomes several rows."""
    burn_in_tokens: int = 50
    """Context that a continued row repeats from before its first target, to warm the recurrent state."""
    min_item_count: int = 5
    """Items seen less often than this in the training window stay unknown."""
    max_items: int = 0
    """Keep only the most frequent items, 0 for all."""
    train_until: str | None = None
    """UTC time before which events are training data. Not given: so that `validation_fraction + test_fraction` of the events remain."""
    validation_until: str | None = None
    """UTC time before which (from train_until on) events are validation data; later ones are test data."""
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    clip_values: ClipValuesConfig = field(default_factory=ClipValuesConfig)

    def __post_init__(self) -> None:
        one_of("sequences.split", self.split, SPLIT_KINDS)
        timed = self.train_until is not None or self.validation_until is not None
        require(
            self.split == "time" or not timed,
            "sequences.split",
            self.split,
            "leave out train_until and validation_until, or split by time",
        )
        require(self.max_tokens >= 2, "sequences.max_tokens", self.max_tokens, "give 2 or more")
        ok = 1 <= self.burn_in_tokens < self.max_tokens
        require(ok, "sequences.burn_in_tokens", self.burn_in_tokens, "give 1 or more, below sequences.max_tokens")
        require(self.min_item_count >= 1, "sequences.min_item_count", self.min_item_count, "give 1 or more")
        for name in ("validation_fraction", "test_fraction"):
            require(
                0 < getattr(self, name) < 0.5,
                f"sequences.{name}",
                getattr(self, name),
                "give a share above 0, below 0.5",
            )
        both_or_none = (self.train_until is None) == (self.validation_until is None)
        require(
            both_or_none, "sequences.train_until", self.train_until, "give it together with sequences.validation_until"
        )
