"""Settings of the nightly run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_spark.config.checks import require

ADVISED, ALWAYS, NEVER = "advised", "always", "never"
_EVERY = re.compile(r"every (\d+) days?")


@dataclass(frozen=True)
class NightlyConfig:
    """When a night trains, and what it does where another one is under way."""

    train: str = ADVISED
    """advised: as the night's own drift advises, from scratch or with a warm start (every 7 days until it has weeks enough to judge by); or
    `every N days`, counted in as_of days; neither trains where the data look broken. always and never mean that. All but drift's advice begin as
    train.warm_start says. The first night trains under every rule, for nothing could score without a model."""
    wait_minutes: float = 0.0
    """So long a night waits for another one on the same warehouse before it gives up, naming it. 0: a scheduler tries again by itself."""

    def __post_init__(self) -> None:
        known = self.train in (ADVISED, ALWAYS, NEVER) or (self.every_days or 0) > 0
        require(known, "nightly.train", self.train, "choose one of advised, always, never, or 'every N days'")
        require(self.wait_minutes >= 0, "nightly.wait_minutes", self.wait_minutes, "give 0 or more")

    @property
    def every_days(self) -> int | None:
        """N of `every N days`; None for another rule."""
        found = _EVERY.fullmatch(self.train)
        return int(found[1]) if found else None
