"""The known process behind the simulated logs.

A user has a taste (long-term, kept throughout), a session an intent (short-term, drawn given the taste). Given both,
the items of a session are a Markov chain whose law is a mixture of three draws:

- chain (`chain_share`): one to three steps along the intent's own cycle from the item before;
- noise (`noise_share`): any item alike;
- taste (the rest): an item of the intent, by popularity, mostly among those that the taste prefers.

Where there is no item before (a session begins) or it is none of the intent's, the chain's share goes to the taste
draw. Times, event types and values are the profile's affair. They depend on the items and on where sessions begin and
end at most, never on taste or intent: they tell nothing of these that the items do not, so that the exact predictor
(`oracle.py`) needs the items alone.

Shapes: U users, S sessions, N events, G tastes, Z intents, M items of one intent, V items, K event types, R steps of
the chain.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm_spark.simulation.config import MAX_BUSY_FRACTION, SECONDS_PER_DAY, SimulationConfig
from llm_spark.simulation.profile import draw_index

_Number = TypeVar("_Number", np.int64, np.float64)

_PARAMETERS, _TIMES, _ITEMS, _MARKS = range(4)


class History(NamedTuple):
    """One user's items in order, as a row of the sequences table with its tokens mapped back to item ids."""

    item_ids: list[str]
    """Item ids; any text that is no item of the process stands for an unknown item."""
    session_starts: list[int]
    """Offsets at which sessions begin; the first is 0."""
    first_target: int
    """Positions from here on are predicted; what stands before is context."""


@dataclass(frozen=True)
class Events:
    """Clean events, ordered by user, then time. Within a user no two events share a second."""

    user_N: NDArray[np.int64]
    """User index."""
    item_N: NDArray[np.int64]
    """Item index."""
    time_N: NDArray[np.int64]
    """Event time, epoch seconds, UTC."""
    event_type_N: NDArray[np.int64]
    """Index into `profile.event_types`."""
    value_N: NDArray[np.float64]
    """Value; NaN where the event type carries none."""
    session_N: NDArray[np.int64]
    """Session index, counted over all users."""

    def __len__(self) -> int:
        return len(self.user_N)


@dataclass(frozen=True, eq=False)
class Process:
    """The parameters of the process, all drawn from the config's seed."""

    config: SimulationConfig
    taste_G: NDArray[np.float64]
    """p(taste)."""
    intent_GZ: NDArray[np.float64]
    """p(intent | taste)."""
    cycle_ZM: NDArray[np.int64]
    """The items of each intent in the order of its cycle."""
    own_intent_V: NDArray[np.int64]
    """The intent that an item belongs to first; others borrow it. A profile may name items by it."""
    preferred_by_V: NDArray[np.int64]
    """The taste that prefers an item. A profile may name items by it too."""
    position_VZ: NDArray[np.int64]
    """Where an item stands in each intent's cycle; -1 where it is none of the intent's."""
    preference_GZM: NDArray[np.float64]
    """p(item at this place of the cycle | taste draw, taste, intent)."""
    event_type_VK: NDArray[np.float64]
    """p(event type | item)."""
    price_V: NDArray[np.float64]
    """Median value of an event with this item."""

    @classmethod
    def draw(cls, config: SimulationConfig) -> Process:
        """Draw the parameters; the same config gives the same process."""
        rng = np.random.default_rng([config.seed, _PARAMETERS])
        num_items, num_intents, num_tastes = config.num_items, config.num_intents, config.num_tastes

        taste_G = rng.dirichlet(np.full(num_tastes, 20.0))
        rank_GZ = rng.permuted(np.tile(np.arange(num_intents), (num_tastes, 1)), axis=1)
        intent_GZ = config.intent_decay**rank_GZ
        intent_GZ /= intent_GZ.sum(axis=1, keepdims=True)

        # Each item has one intent of its own and one taste that prefers it, dealt in turns so that no pair is left
        # without items.
        shuffled_V = rng.permutation(num_items)
        own_intent_V, preferred_by_V = np.empty(num_items, np.int64), np.empty(num_items, np.int64)
        own_intent_V[shuffled_V] = np.arange(num_items) % num_intents
        preferred_by_V[shuffled_V] = np.arange(num_items) // num_intents % num_tastes

        cycle_ZM = np.empty((num_intents, config.items_per_intent), np.int64)
        position_VZ = np.full((num_items, num_intents), -1, np.int64)
        preference_GZM = np.empty((num_tastes, num_intents, config.items_per_intent))
        for intent in range(num_intents):
            own = np.flatnonzero(own_intent_V == intent)
            borrowed = rng.choice(
                np.flatnonzero(own_intent_V != intent), config.items_per_intent - len(own), replace=False
            )
            cycle_M = rng.permutation(np.concatenate([own, borrowed]))
            cycle_ZM[intent] = cycle_M
            position_VZ[cycle_M, intent] = np.arange(config.items_per_intent)
            popularity_M = rng.permutation(np.arange(1.0, config.items_per_intent + 1) ** -config.popularity_exponent)
            preferred_GM = popularity_M * (preferred_by_V[cycle_M] == np.arange(num_tastes)[:, None])
            preference_GZM[:, intent] = config.taste_sharpness * preferred_GM / preferred_GM.sum(axis=1, keepdims=True)
            preference_GZM[:, intent] += (1 - config.taste_sharpness) * popularity_M / popularity_M.sum()

        event_type_VK = config.profile.event_type_law(rng, num_items)
        price_V = config.profile.price_law(rng, num_items)
        return cls(
            config=config,
            taste_G=taste_G,
            intent_GZ=intent_GZ,
            cycle_ZM=cycle_ZM,
            own_intent_V=own_intent_V,
            preferred_by_V=preferred_by_V,
            position_VZ=position_VZ,
            preference_GZM=preference_GZM,
            event_type_VK=event_type_VK,
            price_V=price_V,
        )

    @property
    def start_seconds(self) -> int:
        """Epoch seconds at which the first day begins."""
        first_day = datetime.date.fromisoformat(self.config.start_date)
        return (first_day - datetime.date(1970, 1, 1)).days * SECONDS_PER_DAY

    @property
    def item_ids(self) -> list[str]:
        """The id of each item, by item index."""
        return self.config.profile.item_ids(self)

    @property
    def user_ids(self) -> list[str]:
        """The id of each user, by user index."""
        return self.config.profile.user_ids(self.config.num_users)

    @property
    def bot_user_id(self) -> str:
        """The id after the last user's."""
        return self.config.profile.user_ids(self.config.num_users + 1)[-1]

    def simulate(self) -> Events:
        """The clean events; the same process gives the same events."""
        user_S, length_S, time_N = self._draw_times()
        item_N = self._draw_items(user_S, length_S)

        session_N = np.repeat(np.arange(len(length_S)), length_S)
        rng = np.random.default_rng([self.config.seed, _MARKS])
        event_type_N, value_N = self.config.profile.types_and_values(rng, self, item_N, session_N)
        time_N = self.config.profile.bent_times(time_N)
        return Events(user_S[session_N], item_N, time_N, event_type_N, value_N, session_N)

    def histories(self, events: Events, first_target: int = 1) -> list[History]:
        """One history a user that has events, as the oracle takes them.

        `first_target` is the position from which on items are predicted, the same for all.
        """
        item_ids = np.asarray(self.item_ids)[events.item_N]
        opens_N = np.diff(events.session_N, prepend=-1) > 0
        bounds = np.flatnonzero(np.diff(events.user_N, prepend=-1, append=self.config.num_users))
        return [
            History(item_ids[begin:end].tolist(), np.flatnonzero(opens_N[begin:end]).tolist(), first_target)
            for begin, end in pairwise(bounds)
        ]

    def _draw_times(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Users and lengths of the sessions, and the time of every event.

        A user's days are: pause, session, pause, session, ..., pause. Pauses are lognormal, scaled to fill the days,
        and never shorter than the profile's `min_session_gap_seconds` between two sessions. Sessions that do not fit into the days
        are dropped, the last first.
        """
        config, profile = self.config, self.config.profile
        rng = np.random.default_rng([config.seed, _TIMES])
        seconds = config.num_days * SECONDS_PER_DAY

        num_sessions_U = rng.geometric(1 / config.mean_sessions_per_user, config.num_users)
        user_S = np.repeat(np.arange(config.num_users), num_sessions_U)
        length_S = rng.geometric(1 / config.mean_session_length, len(user_S))
        drawn_gap_N = rng.lognormal(np.log(profile.median_gap_seconds), 1.0, length_S.sum())
        gap_N = np.clip(drawn_gap_N, profile.min_gap_seconds, profile.max_gap_seconds).astype(np.int64)
        gap_N[_starts(length_S)] = 0
        duration_S = np.add.reduceat(gap_N, _starts(length_S))

        busy_S = _running_total(duration_S + profile.min_session_gap_seconds, user_S)
        fits_S = busy_S <= MAX_BUSY_FRACTION * seconds
        gap_N = gap_N[np.repeat(fits_S, length_S)]
        user_S, length_S, duration_S, busy_S = user_S[fits_S], length_S[fits_S], duration_S[fits_S], busy_S[fits_S]

        pause_S, last_pause_U = rng.lognormal(0.0, 1.0, len(user_S)), rng.lognormal(0.0, 1.0, config.num_users)
        total_pause_U = np.bincount(user_S, pause_S, config.num_users) + last_pause_U
        free_seconds_U = np.full(config.num_users, seconds, np.int64)
        np.minimum.at(free_seconds_U, user_S, seconds - busy_S)
        free_before_S = free_seconds_U[user_S] * np.minimum(
            _running_total(pause_S, user_S) / total_pause_U[user_S], 1.0
        )
        began_S = busy_S - duration_S - profile.min_session_gap_seconds + free_before_S.astype(np.int64)

        time_N = self.start_seconds + np.repeat(began_S, length_S)
        time_N += _running_total(gap_N, np.repeat(np.arange(len(length_S)), length_S))
        return user_S, length_S, time_N

    def _draw_items(self, user_S: NDArray[np.int64], length_S: NDArray[np.int64]) -> NDArray[np.int64]:
        config = self.config
        rng = np.random.default_rng([config.seed, _ITEMS])
        taste_S = rng.choice(config.num_tastes, config.num_users, p=self.taste_G)[user_S]
        intent_S = draw_index(rng, np.cumsum(self.intent_GZ, axis=1)[taste_S])
        cumulative_GZM = np.cumsum(self.preference_GZM, axis=2)
        cumulative_R = np.cumsum(config.chain_steps)

        start_S = _starts(length_S)
        item_N = np.empty(length_S.sum(), np.int64)
        for step in range(length_S.max(initial=0)):
            open_S = np.flatnonzero(length_S > step)
            taste, intent = taste_S[open_S], intent_S[open_S]
            before = (
                np.full(len(open_S), -1) if step == 0 else self.position_VZ[item_N[start_S[open_S] + step - 1], intent]
            )
            kind = rng.random(len(open_S))
            noise = kind < config.noise_share
            chain = ~noise & (kind < config.noise_share + config.chain_share) & (before >= 0)
            place = draw_index(rng, cumulative_GZM[taste, intent])
            steps_on = 1 + draw_index(rng, np.broadcast_to(cumulative_R, (len(open_S), len(cumulative_R))))
            place = np.where(chain, (before + steps_on) % config.items_per_intent, place)
            item = np.where(noise, rng.integers(config.num_items, size=len(open_S)), self.cycle_ZM[intent, place])
            item_N[start_S[open_S] + step] = item
        return item_N


def _starts(length_S: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(length_S) - length_S


def _running_total(value_N: NDArray[_Number], group_N: NDArray[np.int64]) -> NDArray[_Number]:
    """Cumulative sum that begins anew with each group; equal groups stand together."""
    total_N = np.cumsum(value_N, dtype=value_N.dtype)
    begin_N = np.diff(group_N, prepend=-1) != 0
    before = (total_N - value_N)[begin_N]
    running_N: NDArray[_Number] = total_N - before[np.cumsum(begin_N) - 1]
    return running_N
