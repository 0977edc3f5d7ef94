"""Outcome labels of a user's history, in numpy. It needs no Spark.

A moment is a place of the history and a time at or after it: the user is seen as after the event at that place, and asked about from that time
on. Asked is after every event, at the time of the latest event so far, once all that happened by then is known (of twenty lines of one invoice
after the last); and at regular instants while the user stays silent (snapshots, as a nightly run sees its users): a model that knew only the
former could say nothing of a user who has been away for a month. Training on snapshots of the silent is landmarking (van Houwelingen 2007,
"Dynamic prediction by landmarking in event history analysis"). A split asks at its own times alone, from the end of the one before to its
own end, and there of everybody who is known by then: users who have been silent since before it began, too.

The label of a moment m looks at the user's events in (m, m + window], whatever row they stand in. It is nan, censored, unless the window is
closed: m + window lies before the time up to which the split may know. Times are epoch microseconds.

Shapes: N steps of one user, L moments, O outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DAY = 86_400 * 1_000_000
_ALWAYS = np.iinfo(np.int64).min
MIN_SNAPSHOT, MAX_SNAPSHOT = _DAY, 7 * _DAY
"""Between snapshots: a quarter of the shortest window, for nearer ones see almost the same days after them. A day at least, as a nightly run
has it, so that a year of silence is not thousands of moments; a week at most, so that it is some."""


@dataclass(frozen=True)
class OutcomeRule:
    """One outcome: whether events of these types (tokens; None for all) follow, or the logarithm of 1 + the sum of their values."""

    event_types: frozenset[int] | None
    window: int
    """Microseconds."""
    is_amount: bool = False


@dataclass(frozen=True)
class OutcomeRules:
    """All outcomes, and before which time each split (train, validation, test) knows all events."""

    rules: tuple[OutcomeRule, ...]
    known_until: tuple[int, int, int]

    def asked_from(self, split: int) -> int:
        """The time from which on a split's moments are asked about: where the split before it ends."""
        return self.known_until[split - 1] if split else _ALWAYS


@dataclass(frozen=True)
class Moments:
    """Moments of one row, those without any label left out."""

    place_L: np.ndarray
    """int32: place in the row of the latest event that is known."""
    elapsed_seconds_L: np.ndarray
    """int64: from the latest event so far to the moment."""
    label_LO: np.ndarray
    """float32, nan where censored."""


class UserOutcomes:
    """One user's whole history, in which labels are looked up."""

    def __init__(
        self, times_N: np.ndarray, event_types_N: np.ndarray, values_N: np.ndarray, outcomes: OutcomeRules
    ) -> None:
        """`times_N` in the order of the history, which need not be that of time; `values_N` nan where missing."""
        self._outcomes = outcomes
        self._snapshot = min(max(min(rule.window for rule in outcomes.rules) // 4, MIN_SNAPSHOT), MAX_SNAPSHOT)
        self._latest_N = np.maximum.accumulate(times_N)
        order = np.argsort(times_N, kind="stable")
        self._times_N = times_N[order]
        known_values_N = np.nan_to_num(values_N[order], nan=0.0, posinf=0.0, neginf=0.0)
        self._totals = []  # for each outcome, what the first n events in order of time add up to, [N+1]
        for rule in outcomes.rules:
            counts_N = np.ones(len(order)) if rule.event_types is None else _among(event_types_N[order], rule)
            self._totals.append(np.append(0.0, np.cumsum(counts_N * known_values_N if rule.is_amount else counts_N)))

    def moments(self, split: int, start: int, first: int, end: int) -> Moments:
        """Of a row that begins at step `start`, at the places [first, end) of the history, from the time on at which the split begins."""
        known_until = self._outcomes.known_until[split]
        place_L, moment_L = self._places_and_times(first, end, known_until)
        is_own_L = moment_L >= self._outcomes.asked_from(split)
        place_L, moment_L = place_L[is_own_L], moment_L[is_own_L]
        label_LO = np.full((len(place_L), len(self._outcomes.rules)), np.nan, dtype=np.float32)
        after_L = np.searchsorted(self._times_N, moment_L, side="right")
        for o, (rule, total) in enumerate(zip(self._outcomes.rules, self._totals, strict=True)):
            until_L = np.searchsorted(self._times_N, moment_L + rule.window, side="right")
            amount_L = total[until_L] - total[after_L]
            label_L = np.log1p(np.maximum(amount_L, 0.0)) if rule.is_amount else amount_L > 0
            label_LO[:, o] = np.where(moment_L + rule.window < known_until, label_L, np.nan)
        kept_L = ~np.isnan(label_LO).all(axis=1)
        elapsed_L = (moment_L - self._latest_N[place_L]) // 1_000_000
        return Moments((place_L - start).astype(np.int32)[kept_L], elapsed_L[kept_L], label_LO[kept_L])

    def _places_and_times(self, first: int, end: int, known_until: int) -> tuple[np.ndarray, np.ndarray]:
        """Place and time of every moment: after each event, and at the snapshots before the next one."""
        places = np.arange(first, end)
        latest = self._latest_N[places]
        following = np.append(self._latest_N[1:], np.iinfo(np.int64).max)[places]
        # Snapshots are at newest - k * every for k = 0, 1, ...; those with latest < snapshot < following are this place's.
        newest, every = known_until - 1, self._snapshot
        first_k = np.maximum(0, (newest - np.minimum(following, known_until)) // every + 1)
        last_k = -((latest - newest) // every) - 1
        num_snapshots = np.maximum(0, last_k - first_k + 1)
        offset = np.arange(num_snapshots.sum()) - np.repeat(np.cumsum(num_snapshots) - num_snapshots, num_snapshots)
        snapshots = newest - (np.repeat(first_k, num_snapshots) + offset) * every
        all_known = following > latest
        place_L = np.concatenate([places[all_known], np.repeat(places, num_snapshots)])
        moment_L = np.concatenate([latest[all_known], snapshots])
        order = np.lexsort((moment_L, place_L))
        return place_L[order], moment_L[order]


def _among(event_types_N: np.ndarray, rule: OutcomeRule) -> np.ndarray:
    assert rule.event_types is not None
    return np.isin(event_types_N, list(rule.event_types)).astype(np.float64)
