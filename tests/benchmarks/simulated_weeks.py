"""Seventeen weeks of a shop's events whose truth is known: quiet or seasonal, and the newest days as they were, shifted, or broken.

Users, items, sessions and hours are those of llm_spark.simulation, thinned out to give the seasons. Counting is done here once more, in plain
numpy, so that the benchmark runs hundreds of weeks in seconds and the tests can hold Spark's counts against it.

Shapes: N events, D days, V items, W windows.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm_spark.config import DriftConfig
from llm_spark.simulation import Process, SimulationConfig
from llm_spark.simulation.retail import RetailProfile
from llm_spark.transforms.drift_counts import (
    EVENTS,
    HITS,
    ITEM_SQUARES,
    MISSING,
    NEW_ITEMS,
    SESSION_LENGTHS,
    TOTALS,
    UNKNOWN_ITEMS,
    USERS,
    VALUELESS,
    Count,
    Counts,
)
from llm_spark.transforms.drift_kernel import Calendar
from llm_spark.transforms.drift_scene import Scene

NUM_WEEKS = 17
"""Twelve to compare with, the one that is judged, and four before which an item must not have been seen to be new."""
VIEW, CART, PURCHASE = range(3)
TYPES = ("view", "cart", "purchase")
SOURCES = ("logs/web/events-#-#-#.jsonl", "logs/app/events-#-#-#.jsonl")
_RENAMED, _FLOOD, _OTHER_FORM = 10_000, 20_000, 1_000_000
"""Added to an item's number: under a newer name, new altogether, written in another format."""
_BUSY_HOURS = [1.0] * 7 + [2.0] * 10 + [3.0] * 5 + [1.5] * 2
_VOLUME_OF_WEEKDAY = np.array([1.0, 0.95, 0.95, 1.0, 1.1, 1.4, 0.7])
_GROWTH_A_WEEK = 1.015
_WEEKS_BETWEEN_SALES = 4
_HIT_RATE, _NUM_FOLLOWED = 0.23, 600
_SWAY_OF_HITS = 0.05
"""Standard deviation of the hit rate's logit from week to week: 0.9 points of 23 %."""
_STEADINESS_OF_CHANCES = 1_500
"""Weeks differ in these as samples of so many do, beside chance."""
_CHANCES = np.array([0.02, 0.08, 0.2, 0.3, 0.25, 0.1, 0.05])


@dataclass(frozen=True)
class Weeks:
    """Events in the order of users, then time."""

    start: datetime.date
    """A Monday."""
    day_N: NDArray[np.int64]
    """Days since `start`."""
    second_N: NDArray[np.int64]
    """Of the day."""
    user_N: NDArray[np.int64]
    item_N: NDArray[np.int64]
    type_N: NDArray[np.int64]
    value_N: NDArray[np.float64]
    session_N: NDArray[np.int64]
    source_N: NDArray[np.int64]
    lacks_agent_N: NDArray[np.bool_]
    hits_W: NDArray[np.int64]
    """Hits among the followed users' next events, for each window; the predictions are drawn, not made."""
    chances_WC: NDArray[np.int64]
    """Users by the chance of their first prediction, 2^-c."""

    def kept(self, keep_N: NDArray[np.bool_]) -> Weeks:
        names = [name for name in vars(self) if name.endswith("_N")]
        return replace(self, **{name: getattr(self, name)[keep_N] for name in names})

    def item_id(self, item: int) -> str:
        return str(item - _OTHER_FORM) if item >= _OTHER_FORM else f"item-{item:05d}"


def simulated_weeks(
    seed: int, is_seasonal: bool, num_users: int = 3_000, num_items: int = 600, sessions: float = 30.0
) -> Weeks:
    """All of it as it should be; deterministic in its arguments."""
    config = SimulationConfig(
        seed=seed,
        num_users=num_users,
        num_items=num_items,
        items_per_intent=num_items // 6,
        num_days=7 * (NUM_WEEKS + 2),
        mean_sessions_per_user=sessions,
        num_tastes=4,
        profile=RetailProfile(hour_weights=_BUSY_HOURS, min_gap_seconds=2),
    )
    process = Process.draw(config)
    events = process.simulate()
    rng = np.random.default_rng([seed, 1])
    # The process fades in and out: its first and its last week are left out.
    since_start_N = events.time_N - process.start_seconds - 7 * 86_400
    num_windows = DriftConfig().num_references + 1
    # Weeks differ by more than chance where there are seasons.
    sway_W = rng.normal(0.0, _SWAY_OF_HITS if is_seasonal else 0.0, num_windows)
    hit_rate_W = 1 / (1 + np.exp(-np.log(_HIT_RATE / (1 - _HIT_RATE)) - sway_W))
    chance_WC = (
        rng.dirichlet(_STEADINESS_OF_CHANCES * _CHANCES, num_windows)
        if is_seasonal
        else np.tile(_CHANCES, (num_windows, 1))
    )
    weeks = Weeks(
        datetime.date.fromisoformat(config.start_date),
        since_start_N // 86_400,
        since_start_N % 86_400,
        events.user_N,
        events.item_N,
        events.event_type_N.copy(),
        events.value_N.copy(),
        events.session_N,
        (events.user_N % 3 == 0).astype(np.int64),
        rng.random(len(events)) < 0.04,
        rng.binomial(_NUM_FOLLOWED, hit_rate_W),
        np.array([rng.multinomial(_NUM_FOLLOWED, chance_C) for chance_C in chance_WC]),
    )
    weeks = weeks.kept((since_start_N >= 0) & (since_start_N < 7 * NUM_WEEKS * 86_400))
    return _with_seasons(weeks, rng, num_items) if is_seasonal else weeks


def _with_seasons(weeks: Weeks, rng: np.random.Generator, num_items: int) -> Weeks:
    """Weekdays, growth, a sale every four weeks, items that come and go, and weeks that differ for no reason."""
    num_days = 7 * NUM_WEEKS
    week_D = np.arange(num_days) // 7
    is_sale_D = week_D % _WEEKS_BETWEEN_SALES == rng.integers(_WEEKS_BETWEEN_SALES)
    volume_D = np.tile(_VOLUME_OF_WEEKDAY, NUM_WEEKS) * _GROWTH_A_WEEK**week_D * np.where(is_sale_D, 1.5, 1.0)
    volume_D *= rng.lognormal(0.0, 0.05, num_days)
    first_N = np.flatnonzero(np.diff(weeks.session_N, prepend=-1))
    session_volume_S = volume_D[weeks.day_N[first_N]]
    stays_S = rng.random(len(first_N)) < session_volume_S / volume_D.max()
    weeks = weeks.kept(np.repeat(stays_S, np.diff(np.append(first_N, len(weeks.session_N)))))

    group_V = rng.integers(20, size=num_items)
    liking_WV = np.exp(rng.normal(0.0, 0.06, (NUM_WEEKS, 20)))[:, group_V]
    on_sale_V, for_weekends_V = rng.random(num_items) < 0.1, rng.random(num_items) < 0.3
    is_weekend_N, is_sale_N = weeks.day_N % 7 >= 5, is_sale_D[weeks.day_N]
    liking_N = liking_WV[weeks.day_N // 7, weeks.item_N]
    liking_N *= np.where(is_weekend_N & for_weekends_V[weeks.item_N], 1.5, 1.0)
    liking_N *= np.where(is_sale_N & on_sale_V[weeks.item_N], 3.0, 1.0)
    weeks = weeks.kept(rng.random(len(liking_N)) < np.minimum(liking_N / np.quantile(liking_N, 0.9), 1.0))

    buys_more_N = is_sale_D[weeks.day_N] & (weeks.type_N == VIEW) & (rng.random(len(weeks.day_N)) < 0.03)
    renamed_on_V = rng.integers(-300, num_days, num_items)  # a fifth or so in these weeks
    is_renamed_N = (renamed_on_V[weeks.item_N] > 0) & (weeks.day_N >= renamed_on_V[weeks.item_N])
    return replace(
        weeks,
        type_N=np.where(buys_more_N, PURCHASE, weeks.type_N),
        value_N=np.where(buys_more_N, 20.0, weeks.value_N),
        item_N=np.where(is_renamed_N, weeks.item_N + _RENAMED, weeks.item_N),
        lacks_agent_N=rng.random(len(weeks.day_N)) < (0.04 * rng.lognormal(0.0, 0.15, NUM_WEEKS))[weeks.day_N // 7],
    )


def _item_mix(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Three events in ten are of items that others asked for before."""
    other_N = in_N & (rng.random(len(in_N)) < 0.3)
    everything = np.unique(weeks.item_N)
    shuffled = rng.permutation(everything)
    return replace(weeks, item_N=np.where(other_N, shuffled[np.searchsorted(everything, weeks.item_N)], weeks.item_N))


def _new_items(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """One event in six is of one of a hundred items that came overnight."""
    flood_N = in_N & (rng.random(len(in_N)) < 1 / 6)
    return replace(weeks, item_N=np.where(flood_N, _FLOOD + rng.integers(100, size=len(in_N)), weeks.item_N))


def _short_sessions(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Of each session the first half."""
    first_N = np.flatnonzero(np.diff(weeks.session_N, prepend=-1))
    length_S = np.diff(np.append(first_N, len(weeks.session_N)))
    place_N = np.arange(len(in_N)) - np.repeat(first_N, length_S)
    return weeks.kept(~in_N | (place_N < np.repeat((length_S + 1) // 2, length_S)))


def _event_types(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """One view in ten becomes a purchase."""
    turned_N = in_N & (weeks.type_N == VIEW) & (rng.random(len(in_N)) < 0.1)
    return replace(
        weeks,
        type_N=np.where(turned_N, PURCHASE, weeks.type_N),
        value_N=np.where(turned_N, 20.0, weeks.value_N),
    )


def _stale_model(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Predictions hit half as often."""
    return replace(weeks, hits_W=np.append(rng.binomial(_NUM_FOLLOWED, _HIT_RATE / 2), weeks.hits_W[1:]))


def _unsure_model(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """The model is half as sure of the first predictions of half the users."""
    halved = np.append(0.0, _CHANCES[:-1])
    halved[-1] += _CHANCES[-1]
    chances_C = rng.multinomial(_NUM_FOLLOWED, (_CHANCES + halved) / 2)
    return replace(weeks, chances_WC=np.vstack([chances_C, weeks.chances_WC[1:]]))


def _values_lost(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Half of the values are missing."""
    return replace(weeks, value_N=np.where(in_N & (rng.random(len(in_N)) < 0.5), np.nan, weeks.value_N))


def _attribute_lost(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Half of the agents are missing."""
    return replace(weeks, lacks_agent_N=weeks.lacks_agent_N | (in_N & (rng.random(len(in_N)) < 0.5)))


def _source_lost(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """The files of one of two sources, a third of the users, did not come."""
    return weeks.kept(~(in_N & (weeks.source_N == 1)))


def _ids_changed(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Item ids come without their prefix and zeros."""
    return replace(weeks, item_N=np.where(in_N, weeks.item_N + _OTHER_FORM, weeks.item_N))


def _clock_stuck(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """The clock stands still from noon of each day."""
    return replace(weeks, second_N=np.where(in_N, np.minimum(weeks.second_N, 43_200), weeks.second_N))


def _no_events(weeks: Weeks, in_N: NDArray[np.bool_], rng: np.random.Generator) -> Weeks:
    """Nothing came."""
    return weeks.kept(~in_N)


SHIFTS: dict[str, tuple[Callable[[Weeks, NDArray[np.bool_], np.random.Generator], Weeks], tuple[str, ...]]] = {
    "item mix changed": (_item_mix, ("item_mix",)),
    "new items flood": (_new_items, ("new_item_share",)),
    "sessions halved": (_short_sessions, ("session_length",)),
    "event types changed": (_event_types, ("event_types",)),
    "model out of date": (_stale_model, ("hit_rate",)),
    "model half as sure": (_unsure_model, ("score_distribution",)),
}
FAULTS: dict[str, tuple[Callable[[Weeks, NDArray[np.bool_], np.random.Generator], Weeks], tuple[str, ...]]] = {
    "half the values lost": (_values_lost, ("missing_rate",)),
    "half of an attribute lost": (_attribute_lost, ("missing_rate",)),
    "one source lost": (_source_lost, ("sources", "volume")),
    "item ids in other format": (_ids_changed, ("item_ids",)),
    "clock stuck at noon": (_clock_stuck, ("hours",)),
    "no event at all": (_no_events, ("volume",)),
}
"""What happens to the newest window, and the measures of which one should tell."""


def changed(weeks: Weeks, change: str, calendar: Calendar, seed: int) -> Weeks:
    """The weeks with one of SHIFTS or FAULTS done to the judged window."""
    first, last = ((day - weeks.start).days for day in calendar.days(0))
    in_N = (weeks.day_N >= first) & (weeks.day_N <= last)
    function, _ = (SHIFTS | FAULTS)[change]
    return function(weeks, in_N, np.random.default_rng([seed, 2, zlib.crc32(change.encode())]))


def judged_calendar(weeks: Weeks, settings: DriftConfig) -> Calendar:
    """The last day, or week, is judged."""
    last_day = weeks.start + datetime.timedelta(days=7 * NUM_WEEKS - 1)
    return Calendar(last_day, settings.window_days, settings.num_references)


def scene_of(
    weeks: Weeks, calendar: Calendar, settings: DriftConfig, earlier_counts: list[Count] | None = None
) -> Scene:
    """All windows are known; the vocabulary was made the night before the judged one. `earlier_counts` spare counting the earlier ones anew."""
    windows = range(settings.num_references + 1)
    if earlier_counts is None:
        earlier_counts = counts_of(weeks, calendar, settings, windows[1:])
    with_a_past = [w for w in windows if (calendar.days(w)[0] - weeks.start).days >= settings.new_item_days]
    counts = Counts.of([*counts_of(weeks, calendar, settings, windows[:1]), *earlier_counts], len(windows))
    return Scene(counts, calendar, settings, windows[1:], with_a_past)


def counts_of(weeks: Weeks, calendar: Calendar, settings: DriftConfig, windows: range) -> list[Count]:
    """The counts that transforms.drift makes in Spark, of these windows, in numpy."""
    window_D = np.full(7 * NUM_WEEKS, -1)
    for window in range(settings.num_references + 1):
        first, last = ((day - weeks.start).days for day in calendar.days(window))
        window_D[first : last + 1] = window
    window_N = window_D[weeks.day_N]
    in_N = np.isin(window_N, windows)
    used, used_window_N = weeks.kept(in_N), window_N[in_N]
    items, place_N = np.unique(used.item_N, return_inverse=True)
    forms = [_form(weeks.item_id(item)) for item in items.tolist()]
    kinds, form_of_item = np.unique(forms, return_inverse=True)
    lacks_N = np.isnan(used.value_N)
    return [
        *_item_counts(weeks, window_D, calendar, settings, windows),
        *_totals(used, used_window_N, windows),
        *_counted(used_window_N, used.type_N, "event_types", lambda kind: TYPES[kind]),
        *_counted(used_window_N[lacks_N], used.type_N[lacks_N], VALUELESS, lambda kind: TYPES[kind]),
        *_counted(used_window_N, used.second_N // 3600, "hours", str),
        *_counted(used_window_N, used.source_N, "sources", lambda source: SOURCES[source]),
        *_counted(used_window_N, form_of_item[place_N], "item_ids", lambda kind: str(kinds[kind])),
        *_counted(used_window_N, np.zeros(len(used_window_N), np.int64), "user_ids", lambda _: "a-9 of 11"),
        *_session_counts(weeks, window_N, windows),
        *_prediction_counts(weeks, windows),
    ]


def _counted(
    window_N: NDArray[np.int64], code_N: NDArray[np.int64], measure: str, named: Callable[[int], str]
) -> list[Count]:
    num_codes = int(code_N.max(initial=0)) + 1
    nums = np.bincount(window_N * num_codes + code_N)
    return [
        Count(measure, place // num_codes, named(place % num_codes), None, int(nums[place]))
        for place in np.flatnonzero(nums).tolist()
    ]


def _form(identifier: str) -> str:
    prefix = "a-9" if identifier.startswith("item-") else "9"
    return f"{prefix} of {len(identifier)}"


def _totals(used: Weeks, window_N: NDArray[np.int64], windows: range) -> list[Count]:
    counts = []
    for window in windows:
        in_N = window_N == window
        numbers = {EVENTS: in_N.sum(), USERS: len(np.unique(used.user_N[in_N]))}
        numbers[f"{MISSING}agent"] = used.lacks_agent_N[in_N].sum()
        counts += [Count(TOTALS, window, name, None, int(number)) for name, number in numbers.items()]
    return counts


def _item_counts(
    weeks: Weeks, window_D: NDArray[np.int64], calendar: Calendar, settings: DriftConfig, windows: range
) -> list[Count]:
    # num_VD: events of each item on each day; items by their place among all that occur.
    items, place_N = np.unique(weeks.item_N, return_inverse=True)
    num_VD = np.bincount(place_N * len(window_D) + weeks.day_N, minlength=len(items) * len(window_D))
    num_VD = num_VD.reshape(len(items), len(window_D))
    num_before_V = num_VD[:, window_D > 0].sum(axis=1)
    is_named_V = np.zeros(len(items), bool)
    is_named_V[np.lexsort((items, -num_before_V))[: settings.num_top_items]] = True
    judged_from = (calendar.days(0)[0] - weeks.start).days
    is_unknown_V = num_VD[:, :judged_from].sum(axis=1) == 0
    counts = []
    for window in windows:
        first = (calendar.days(window)[0] - weeks.start).days
        num_V = num_VD[:, window_D == window].sum(axis=1)
        is_new_V = num_VD[:, max(0, first - settings.new_item_days) : first].sum(axis=1) == 0
        counts.append(Count(TOTALS, window, NEW_ITEMS, None, int(num_V[is_new_V].sum())))
        counts.append(Count(TOTALS, window, UNKNOWN_ITEMS, None, int(num_V[is_unknown_V].sum())))
        counts.append(Count(TOTALS, window, ITEM_SQUARES, None, int((num_V**2).sum())))
        for place in np.flatnonzero(num_V).tolist():
            item, num = int(items[place]), int(num_V[place])
            name, group = (weeks.item_id(item), None) if is_named_V[place] else (None, item % settings.num_tail_groups)
            counts.append(Count("item_mix", window, name, group, num))
    return counts


def _session_counts(weeks: Weeks, window_N: NDArray[np.int64], windows: range) -> list[Count]:
    """A session counts, whole, where it began."""
    first_N = np.flatnonzero(np.diff(weeks.session_N, prepend=-1))
    length_S = np.diff(np.append(first_N, len(weeks.session_N)))
    least = np.array(SESSION_LENGTHS)
    class_S = least[np.searchsorted(least, length_S, side="right") - 1]
    began_S = np.isin(window_N[first_N], windows)
    return _counted(window_N[first_N][began_S], class_S[began_S], "session_length", str)


def _prediction_counts(weeks: Weeks, windows: range) -> list[Count]:
    counts = []
    for window in windows:
        hits = int(weeks.hits_W[window])
        sums = (_NUM_FOLLOWED, _NUM_FOLLOWED, hits, _NUM_FOLLOWED, hits, hits)
        names = ("num_users", "trials", "hits", "trials_squared", "hits_squared", "hits_trials")
        counts += [Count(HITS, window, name, None, number) for name, number in zip(names, sums, strict=True)]
        chances = enumerate(weeks.chances_WC[window].tolist())
        counts += [Count("score_distribution", window, str(chance), None, number) for chance, number in chances]
    return counts
