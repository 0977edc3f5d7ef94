"""What the logs of one trade look like: its names, event types, values, session rhythm, and how a record is laid out.

The generating process (`process.py`) and its exact oracle are the same for every trade. A profile may draw types and
values from items and from where sessions begin and end, never from taste or intent, so that they tell nothing more of
the next item than the items do, and the oracle stays exact.

Shapes: N events, V items, K event types.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llm_spark.simulation.process import Process

Record = dict[str, Any]
"""A line's fields in their order; a value may be a record itself where the format nests."""


class Mark(NamedTuple):
    """One event to be written as a record."""

    time: int
    """Epoch seconds, UTC."""
    user: int
    item: int
    event_type: int
    value: float | None
    session: int
    is_machine: bool = False
    """Of the bot, the test terminal, the test patient: whatever is no person's event."""


@dataclass(frozen=True)
class Profile(ABC):
    """A trade. Another one is another subclass."""

    name: ClassVar[str]
    """What it is called on the command line."""
    formats: ClassVar[tuple[str, ...]]
    """What its logs may be written as: jsonl, csv, or both in turns; the first where nothing is said."""
    file_stem: ClassVar[str]
    """What a file's name begins with."""
    header: ClassVar[tuple[str, ...]]
    """Names of a record's fields, in order: the header of CSV files."""
    delimiter: ClassVar[str] = ","
    """Between CSV fields."""
    user_path: ClassVar[tuple[str, ...]]
    """The field that says who, as a path through nested records; it is what a line without a user lacks."""
    item_path: ClassVar[tuple[str, ...]]
    """The field that a line without an item lacks."""
    time_path: ClassVar[tuple[str, ...]]
    """The field that says when."""
    bad_times: ClassVar[tuple[str, ...]]
    """Texts in place of a time that no parser may accept."""
    num_event_types: ClassVar[int] = 0
    """How many event types it has; 0 for as many as one likes."""
    has_session_ids: ClassVar[bool] = False
    """Whether records carry the session's id, so that no pause needs to tell the sessions apart."""

    event_types: list[str] = field(default_factory=list)
    """Names of the event types."""

    event_type_shares: list[float] = field(default_factory=list)
    """Share of each event type for an average item; sums to 1. 0 for a type that only follows from other events."""

    valued_event_types: list[str] = field(default_factory=list)
    """Event types that carry a value; the others carry none, as real logs do."""

    missing_value_share: float = 0.0
    """Share of the events of these types whose value is missing all the same."""

    value_log_median: float = 3.0
    """Natural logarithm of the median value of an average item."""

    value_item_spread: float = 0.8
    """Standard deviation of that logarithm over the items."""

    value_event_spread: float = 0.2
    """Standard deviation of the value's logarithm over the events of one item."""

    min_gap_seconds: int = 1
    """Shortest pause within a session."""

    median_gap_seconds: float = 45.0
    """Median pause within a session; pauses are lognormal, their logarithm's standard deviation is 1."""

    max_gap_seconds: int = 1200
    """Longest pause within a session: well under the usual 30 minutes of inactivity."""

    min_session_gap_seconds: int = 3 * 3600
    """Shortest pause between two sessions of a user: well above `max_gap_seconds`, so that a pause tells the sessions
    apart exactly. Both hold before the clock is bent by `hour_weights`."""

    hour_weights: list[float] = field(default_factory=lambda: [1.0] * 24)
    """How busy each hour of the day is, UTC: time passes faster where it is quiet. All alike leaves times as they
    are."""

    def __post_init__(self) -> None:
        if not self.event_types or len(set(self.event_types)) != len(self.event_types):
            raise refusal("profile.event_types", self.event_types, "give at least one name, none twice")
        if self.num_event_types and len(self.event_types) != self.num_event_types:
            raise refusal("profile.event_types", self.event_types, f"give {self.num_event_types} names")
        shares = self.event_type_shares
        if len(shares) != len(self.event_types) or min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
            raise refusal("profile.event_type_shares", shares, "give one share an event type, summing to 1")
        if not set(self.valued_event_types) <= set(self.event_types):
            raise refusal("profile.valued_event_types", self.valued_event_types, f"choose among {self.event_types}")
        for name in (one.name for one in fields(self) if one.name.endswith("_share")):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise refusal(f"profile.{name}", getattr(self, name), "must lie between 0 and 1")
        if not math.isfinite(self.value_log_median):
            raise refusal("profile.value_log_median", self.value_log_median, "give a finite number")
        for name in ("value_item_spread", "value_event_spread"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise refusal(f"profile.{name}", getattr(self, name), "must be 0 or more")
        self._check_rhythm()

    def _check_rhythm(self) -> None:
        weights = self.hour_weights
        if len(weights) != 24 or not 0.0 < min(weights) <= max(weights) < math.inf:
            raise refusal("profile.hour_weights", weights, "give 24 numbers above 0")
        mean = sum(weights) / 24
        slowest, fastest = mean / max(weights), mean / min(weights)
        if not 1 <= self.min_gap_seconds <= self.median_gap_seconds <= self.max_gap_seconds:
            raise refusal(
                "profile.median_gap_seconds",
                self.median_gap_seconds,
                f"must lie between min_gap_seconds ({self.min_gap_seconds}, at least 1) and max_gap_seconds ({self.max_gap_seconds})",
            )
        if self.min_gap_seconds * slowest < 1:
            raise refusal(
                "profile.min_gap_seconds",
                self.min_gap_seconds,
                f"must be at least {1 / slowest:.1f} at these hour_weights",
            )
        least = 1 if self.has_session_ids else self.max_gap_seconds * fastest / slowest + 1
        if self.min_session_gap_seconds < least:
            raise refusal(
                "profile.min_session_gap_seconds",
                self.min_session_gap_seconds,
                f"must be at least {math.ceil(least)}, so that a pause tells sessions apart",
            )

    @abstractmethod
    def user_ids(self, num_users: int) -> list[str]:
        """An id each, all different."""

    @abstractmethod
    def item_ids(self, process: Process) -> list[str]:
        """An id an item, all different, as the events table is to have it."""

    @abstractmethod
    def records(self, process: Process, marks: Sequence[Mark]) -> list[Record]:
        """A record a mark. Those of a person's sessions stand before the machine's."""

    def event_type_law(self, rng: np.random.Generator, num_items: int) -> NDArray[np.float64]:
        """p(event type | item), [V, K]: some items lean to the later types."""
        shares_K = np.asarray(self.event_type_shares)
        lean_V = rng.normal(0.0, 0.5, num_items)
        event_type_VK = shares_K * np.exp(lean_V[:, None] * np.arange(len(shares_K)))
        event_type_VK /= event_type_VK.sum(axis=1, keepdims=True)
        return event_type_VK

    def price_law(self, rng: np.random.Generator, num_items: int) -> NDArray[np.float64]:
        """Median value of an event with each item, [V]."""
        return rng.lognormal(self.value_log_median, self.value_item_spread, num_items)

    def types_and_values(
        self, rng: np.random.Generator, process: Process, item_N: NDArray[np.int64], session_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Event type (index) and value (NaN where there is none) of each event. Events stand by user, then time."""
        event_type_N = draw_index(rng, np.cumsum(process.event_type_VK, axis=1)[item_N])
        value_N = np.round(process.price_V[item_N] * rng.lognormal(0.0, self.value_event_spread, len(item_N)), 2)
        return event_type_N, self.with_missing_values(rng, event_type_N, value_N)

    def carries_value(self, event_type_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether an event of each type has a value, unless it is missing."""
        return np.array([name in self.valued_event_types for name in self.event_types])[event_type_N]

    def with_missing_values(
        self, rng: np.random.Generator, event_type_N: NDArray[np.int64], value_N: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The values with NaN where the event type carries none, and where one is missing."""
        has_value_N = self.carries_value(event_type_N)
        if self.missing_value_share > 0:
            has_value_N &= rng.random(len(value_N)) >= self.missing_value_share
        return np.where(has_value_N, value_N, np.nan)

    def may_be_late(self, event_type_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which events may stand in the file of a later day."""
        return np.ones(len(event_type_N), bool)

    def bent_times(self, time_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of the same day and in the same order, dense where `hour_weights` are high."""
        weight_H = np.asarray(self.hour_weights)
        if (weight_H == weight_H[0]).all():
            return time_N
        passed_H = np.concatenate([[0.0], np.cumsum(weight_H)]) / weight_H.sum() * 86_400
        day_N, second_N = np.divmod(time_N, 86_400)
        bent_N = np.interp(second_N, passed_H, np.arange(25) * 3600.0).astype(np.int64)
        return np.asarray(day_N * 86_400 + bent_N)


def draw_index(rng: np.random.Generator, cumulative_NC: NDArray[np.float64]) -> NDArray[np.int64]:
    """One draw a row from cumulative probabilities."""
    draw_N = rng.random(len(cumulative_NC))
    index_N: NDArray[np.int64] = np.minimum((cumulative_NC <= draw_N[:, None]).sum(axis=1), cumulative_NC.shape[1] - 1)
    return index_N


def place_within(group_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same group stand before each."""
    order = np.argsort(group_N, kind="stable")
    sorted_N = group_N[order]
    place_N = np.empty(len(group_N), np.int64)
    place_N[order] = np.arange(len(group_N)) - np.searchsorted(sorted_N, sorted_N)
    return place_N


def scrambled(number: int, modulus: int) -> int:
    """A number below `modulus` (a power of ten) that says little of `number`; different for different ones below it."""
    return (number * 2_718_281_827 + 314_159) % modulus


def in_order_of_start(marks: Sequence[Mark]) -> dict[int, int]:
    """A running number for each session, by the time of its first event, as a system that hands them out would."""
    first: dict[int, int] = {}
    for mark in marks:
        first[mark.session] = min(mark.time, first.get(mark.session, mark.time))
    return {
        session: number for number, session in enumerate(sorted(first, key=lambda session: (first[session], session)))
    }


def refusal(name: str, value: object, remedy: str) -> ValueError:
    return ValueError(f"simulation.{name}={value!r}: {remedy}")
