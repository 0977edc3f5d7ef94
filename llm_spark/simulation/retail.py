"""A web shop's clicks: the trade that is simulated where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_spark.simulation.profile import Mark, Profile, Record, refusal

if TYPE_CHECKING:
    from llm_spark.simulation.process import Process


@dataclass(frozen=True)
class RetailProfile(Profile):
    """Flat records: time (ISO 8601, UTC, whole seconds, Z), user, item, type, value (null or empty where there is none)
    and agent."""

    name: ClassVar[str] = "retail"
    formats: ClassVar[tuple[str, ...]] = ("jsonl", "csv", "both")
    file_stem: ClassVar[str] = "events"
    header: ClassVar[tuple[str, ...]] = ("time", "user", "item", "type", "value", "agent")
    user_path: ClassVar[tuple[str, ...]] = ("user",)
    item_path: ClassVar[tuple[str, ...]] = ("item",)
    time_path: ClassVar[tuple[str, ...]] = ("time",)
    bad_times: ClassVar[tuple[str, ...]] = ("not-a-time", "2025-02-30T10:61:00Z", "31/13/2025 25:00")

    event_types: list[str] = field(default_factory=lambda: ["view", "cart", "purchase"])
    event_type_shares: list[float] = field(default_factory=lambda: [0.80, 0.14, 0.06])
    valued_event_types: list[str] = field(default_factory=lambda: ["cart", "purchase"])

    user_prefix: str = "user-"
    """What a user id begins with; six digits follow."""

    item_prefix: str = "item-"
    """What an item id begins with; five digits follow. The digits say nothing of how popular the item is."""

    agents: list[str] = field(default_factory=lambda: ["web/1.8", "app/3.2 (phone, en)", "app/3.1 (tablet)"])
    """Agent strings of people, one a user. One holds a comma, so that CSV fields need quoting."""

    bot_agent: str = "fetchbot/2.0"
    """Agent string of the bot; holds 'bot', which no agent of a person may."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.agents or any("bot" in agent.lower() for agent in self.agents):
            raise refusal("profile.agents", self.agents, "give at least one, none with 'bot' in it")
        if "bot" not in self.bot_agent.lower():
            raise refusal("profile.bot_agent", self.bot_agent, "it must hold 'bot'")

    def user_ids(self, num_users: int) -> list[str]:
        return [f"{self.user_prefix}{user:06d}" for user in range(num_users)]

    def item_ids(self, process: Process) -> list[str]:
        return [f"{self.item_prefix}{item:05d}" for item in range(process.config.num_items)]

    def records(self, process: Process, marks: Sequence[Mark]) -> list[Record]:
        user_ids, item_ids = [*process.user_ids, process.bot_user_id], process.item_ids
        times = np.datetime_as_string(np.array([mark.time for mark in marks], "datetime64[s]")).tolist()
        return [
            {
                "time": f"{time}Z",
                "user": user_ids[mark.user],
                "item": item_ids[mark.item],
                "type": self.event_types[mark.event_type],
                "value": mark.value,
                "agent": self.bot_agent if mark.is_machine else self.agents[mark.user % len(self.agents)],
            }
            for time, mark in zip(times, marks, strict=True)
        ]
