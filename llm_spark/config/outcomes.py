"""Settings of the outcomes that a model foretells beside the next item."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llm_spark.config.checks import one_of, require

PROBABILITY, AMOUNT = OUTCOME_KINDS = ("probability", "amount")
MOMENT_COLUMNS = ("outcome_places", "outcome_elapsed_seconds", "outcome_labels")
"""Of the table sequences: at which moments of a row outcomes are asked about, and what came about."""
OPENING_COLUMNS = ("num_sessions_before", "first_event_time", "latest_event_time_before", "value_sum_before")
"""Of the table sequences: what stands before a row."""
OUTCOMES_VERSION = 2
"""Rises when it changes at which moments outcomes are asked about, what the head is told of them, or how amounts are answered: sequences that
were made under another one are made again, and of a model it is said."""


@dataclass(frozen=True)
class OutcomeConfig:
    """What a user may do within some days after a moment: strictly after it, and at the latest so many days later."""

    name: str = ""
    """What it is called in metrics and scores."""
    event_types: list[str] = field(default_factory=list)
    """Events of these types count; not given, every event does."""
    within_days: float = 30.0
    """How far ahead it looks. A moment teaches only where so many days after it are known: those close to sequences.train_until do not."""
    kind: str = "probability"
    """probability: whether there is such an event. amount: the sum of `value` of such events (as the sequences have it, missing ones left out),
    learned as log(1 + sum), below 0 taken as 0."""
    weight: float = 1.0
    """Of its loss, mean over the moments, beside model.next_item_weight."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "model.outcomes.name", self.name, "give each outcome a name")
        one_of(f"model.outcomes.kind of {self.name}", self.kind, OUTCOME_KINDS)
        for name in ("within_days", "weight"):
            ok = 0 < getattr(self, name) < math.inf
            require(ok, f"model.outcomes.{name} of {self.name}", getattr(self, name), "give a number above 0")
