"""What to simulate: frozen dataclasses of plain types, usable as OmegaConf structured configs."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, field, fields

from llm_spark.simulation.profile import Profile, refusal
from llm_spark.simulation.retail import RetailProfile

SECONDS_PER_DAY = 86_400

MAX_BUSY_FRACTION = 0.8
"""Of a user's days at most this share is filled with sessions and their shortest pauses."""


@dataclass(frozen=True)
class SimulationConfig:
    """One simulated data set. The same config gives the same bytes.

    Rates of planted lines are fractions of the clean events; each planted line is extra, so that the clean events stay
    complete (late lines apart: they are clean events that stand in a later file).
    """

    seed: int = 7
    """Seed of everything: the process, the events, the troubles."""

    num_users: int = 3000
    """Users with events. 3,000 give about 120,000 events: enough for a small model to learn from in a minute on one
    core."""

    num_items: int = 1000
    """Items in all. 1,000 leave about 120 events an item at the other defaults: the structure can be learned."""

    num_days: int = 28
    """Days that the logs cover, from `start_date` on; each has its own files. Four weeks leave room to split by
    time."""

    start_date: str = "2025-01-06"
    """First day, ISO date, UTC. A Monday of no meaning."""

    mean_sessions_per_user: float = 10.0
    """Mean of the geometric law of a user's number of sessions (1 or more): ten, so that long-term memory has a
    past."""

    mean_session_length: float = 4.0
    """Mean of the geometric law of a session's number of events (1 or more): short, as real sessions are, so that a
    session alone does not give the taste away."""

    num_tastes: int = 16
    """Long-term kinds of users. A user keeps one taste throughout; each taste prefers its own share of every intent's
    items, about nine items at the defaults: what fits into a list of ten."""

    num_intents: int = 8
    """Short-term kinds of sessions. A session keeps one intent; each intent has its own items and its own cycle through
    them."""

    items_per_intent: int = 150
    """Items of one intent. More than num_items / num_intents, so that intents overlap and one item does not give the
    intent away."""

    intent_decay: float = 0.3
    """Each taste ranks the intents in its own order; the weight of a rank is this to the power of the rank. 0.3: seven
    sessions in ten have the favourite intent. 1 would make intents independent of tastes."""

    taste_sharpness: float = 0.7
    """Share of taste draws that come from the taste's own items of the intent; the rest comes from all items of the
    intent."""

    popularity_exponent: float = 0.7
    """Zipf exponent of the items within an intent. 0 is flat; above 1 popularity alone predicts too well."""

    chain_share: float = 0.20
    """Probability that the next item of a session follows the intent's cycle from the item before: what a short memory
    can know."""

    noise_share: float = 0.15
    """Probability that an item is drawn from all items alike: what nobody can know. The rest are taste draws."""

    chain_steps: list[float] = field(default_factory=lambda: [0.7, 0.2, 0.1])
    """Probability of one, two, three ... steps along the cycle when an item follows it; sums to 1."""

    num_files_per_day: int = 1
    """Files that a day's lines are spread over."""

    gzip_file_rate: float = 0.5
    """Fraction of files that are gzipped; 0 for none, 1 for all. Half, so that both kinds are read."""

    unsorted_file_rate: float = 0.25
    """Fraction of files whose lines stand in random order; the others are in order of arrival."""

    duplicate_rate: float = 0.01
    """Exact copies of clean lines, in the same file or a later one."""

    late_rate: float = 0.01
    """Clean events that stand in the file of the next day or the day after it."""

    broken_rate: float = 0.002
    """Truncated JSON, or CSV lines with too few or too many fields."""

    missing_user_rate: float = 0.002
    """Lines without a user: the field absent, null or empty."""

    missing_item_rate: float = 0.001
    """Lines without an item."""

    missing_time_rate: float = 0.001
    """Lines without a time."""

    bad_time_rate: float = 0.001
    """Lines whose time is text that no parser may accept."""

    bot_rate: float = 0.02
    """Lines of one bot that takes item after item, evenly over all days: by far the most events of one user. 0 for
    none."""

    profile: Profile = field(default_factory=RetailProfile)
    """The trade: names, event types, values, session rhythm and the layout of the records."""

    def __post_init__(self) -> None:
        for name in (
            "num_users",
            "num_items",
            "num_days",
            "num_tastes",
            "num_intents",
            "items_per_intent",
            "num_files_per_day",
        ):
            if getattr(self, name) < 1:
                raise refusal(name, getattr(self, name), "must be at least 1")
        if self.seed < 0:
            raise refusal("seed", self.seed, "must be 0 or more")
        for name in ("mean_sessions_per_user", "mean_session_length"):
            if not 1.0 <= getattr(self, name) < math.inf:
                raise refusal(name, getattr(self, name), "must be at least 1")
        rates = [one.name for one in fields(self) if one.name.endswith("_rate")]
        for name in ("chain_share", "taste_sharpness", *rates):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise refusal(name, getattr(self, name), "must lie between 0 and 1")
        if not 0.0 < self.intent_decay <= 1.0:
            raise refusal("intent_decay", self.intent_decay, "must lie above 0 and at most at 1")
        if not 0.0 <= self.popularity_exponent < math.inf:
            raise refusal("popularity_exponent", self.popularity_exponent, "must be 0 or more")
        if not 0.0 < self.noise_share <= 1.0 - self.chain_share:
            raise refusal("noise_share", self.noise_share, "must lie above 0 and at most at 1 - chain_share")
        steps = self.chain_steps
        if not steps or min(steps) < 0 or not math.isclose(sum(steps), 1.0, abs_tol=1e-6):
            raise refusal("chain_steps", steps, "give probabilities that sum to 1")
        if self.num_items < self.num_intents * self.num_tastes:
            raise refusal("num_items", self.num_items, "must be at least num_intents * num_tastes")
        smallest = max(-(-self.num_items // self.num_intents), len(steps) + 1)
        if not smallest <= self.items_per_intent <= self.num_items:
            raise refusal(
                "items_per_intent", self.items_per_intent, f"must lie between {smallest} and {self.num_items}"
            )
        # Room for one session that holds the longest pause: with less, most users would have no event at all.
        least_seconds = self.profile.min_session_gap_seconds + self.profile.max_gap_seconds
        least_days = math.ceil(least_seconds / (MAX_BUSY_FRACTION * SECONDS_PER_DAY))
        if self.num_days < least_days:
            raise refusal("num_days", self.num_days, f"must be at least {least_days} for sessions of this profile")
        try:
            datetime.date.fromisoformat(self.start_date)
        except ValueError:
            raise refusal("start_date", self.start_date, "give an ISO date such as 2025-01-06") from None
