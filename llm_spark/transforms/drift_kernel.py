"""How far a window of events lies from earlier ones, and how far it may: the statistics of drift, in numpy, without Spark.

A window is compared with the few before it of the same weekdays, pooled. What that distance may be is learned from the earlier windows: each
of them is compared with those before it in the same way. Weekdays, growth, a slow change of the catalogue and swings that come again are
in both, and cancel; a fixed limit (.1 and .25 for the population stability index are customary, Siddiqi 2006) knows nothing of them, nor of
the sample's size.

- Mixes (counts by category): the population stability index, sum((p - q) ln(p / q)), Jeffreys's divergence. Without change it is
  (1/n + 1/m) chi2(C - 1) for independent draws (Yurdakul 2018; so the limit must fall as samples grow), and a multiple of it for events that
  come in clusters, as users' do. Earlier indices tell the multiple, so that the ratio to their mean is F-distributed, with fewer degrees of
  freedom where they scatter more than chi2 does (matched moments, as Satterthwaite 1946).
- Shares: 2 asin(sqrt(share)), whose variance hardly depends on the share (Anscombe 1948) and whose difference is Cohen's h (1988), an effect
  size (as du Pisanie et al. 2023 propose for large samples, where every change is significant).
- Numbers: their logarithm.
  The last two by the prediction interval of one further observation, Student's t.

A limit never lies inside what an earlier window reached. Windows are counted backwards: 0 is the one that is judged, 1 the one before it.

Shapes: W windows, newest first; C categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy import special

MAX_DEPTH = 4
"""Windows that one is compared with, at most: enough to average, few enough to be recent."""
_DAYS_A_WEEK = 7
_SMOOTHING = 0.5
"""Added to each category's count, so that an empty one has a logarithm (Jeffreys's prior)."""


@dataclass(frozen=True)
class Calendar:
    """The judged window and the earlier ones of the same weekdays; windows do not overlap."""

    as_of: date
    """Its last day."""
    window_days: int
    num_references: int
    excluded: frozenset[date] = field(default_factory=frozenset)

    @property
    def period_days(self) -> int:
        """From one window to the next: whole weeks."""
        return -(-self.window_days // _DAYS_A_WEEK) * _DAYS_A_WEEK

    @property
    def first_day(self) -> date:
        """Of the oldest window."""
        return self.days(self.num_references)[0]

    def days(self, window: int) -> tuple[date, date]:
        """First and last day of a window."""
        last = self.as_of - timedelta(days=window * self.period_days)
        return last - timedelta(days=self.window_days - 1), last

    def excluded_day(self, window: int, days_after: int = 0) -> date | None:
        """The first day of a window, or of so many days after it, that is excluded; None where none is."""
        first, last = self.days(window)
        return min((day for day in self.excluded if first <= day <= last + timedelta(days=days_after)), default=None)

    def name(self, window: int) -> str:
        first, last = self.days(window)
        return str(last) if first == last else f"{first} to {last}"

    def moved_back(self, days: int) -> Calendar:
        """The same windows so many days earlier."""
        back = timedelta(days=days)
        return Calendar(self.as_of - back, self.window_days, self.num_references, self.excluded)


@dataclass(frozen=True)
class Comparison:
    """One measure of the judged window beside what the earlier ones allow it, in the measure's own unit."""

    value: float
    usual: float
    """What was to be expected."""
    lows: tuple[float, ...]
    """For each false-alarm rate that was asked for: below this it is unusual."""
    highs: tuple[float, ...]
    """Above this."""
    depth: int
    """Windows that it was compared with."""
    num_calibrations: int
    """Earlier windows whose own distances set the limits."""


def depth_of(num_references: int) -> int:
    """How many windows one is compared with, of so many earlier ones: a third, so that two thirds tell the usual distance."""
    return min(MAX_DEPTH, max(1, num_references // 3))


def psi_parts(before_C: NDArray[np.float64], now_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each category adds to the population stability index of two rows of counts. All are 0 or more; categories empty in both add nothing.

    Half an event is added to each category that is not empty in both.
    """
    used_C = (before_C > 0) | (now_C > 0)
    parts_C = np.zeros(len(used_C))
    p, q = now_C[used_C] + _SMOOTHING, before_C[used_C] + _SMOOTHING
    p, q = p / p.sum(), q / q.sum()
    parts_C[used_C] = (p - q) * np.log(p / q)
    return parts_C


def psi(before_C: NDArray[np.float64], now_C: NDArray[np.float64]) -> float:
    """The population stability index of two rows of counts, as the sum of `psi_parts`."""
    return float(psi_parts(before_C, now_C).sum())


def compare_mix(
    counts_WC: NDArray[np.float64], num_users_W: NDArray[np.float64], false_alarm_rates: Sequence[float]
) -> Comparison:
    """The population stability index of the judged window, and its limit for each rate at which nothing should pass it.

    `num_users_W`, above 0, are the windows' independent units: a window of fewer is noisier, and is allowed more in proportion. One of more
    is allowed no less, for what varies between windows does not shrink with them. ValueError for fewer than 4 earlier windows.
    """
    num_references = _checked(len(counts_WC))
    depth = depth_of(num_references)
    index_W, noise_W = [], []
    for window in range(num_references - depth + 1):
        pool = slice(window + 1, window + 1 + depth)
        index_W.append(psi(counts_WC[pool].sum(axis=0), counts_WC[window]))
        noise_W.append(1 / num_users_W[window] + 1 / num_users_W[pool].sum())
    value, noise = index_W[0], noise_W[0]
    earlier = np.array([index * max(1.0, noise / own) for index, own in zip(index_W[1:], noise_W[1:], strict=True)])
    usual = float(earlier.mean())
    freedom = _freedom(earlier, int((counts_WC[1:].sum(axis=0) > 0).sum()) - 1)
    highs = tuple(
        max(usual * float(special.fdtri(freedom, len(earlier) * freedom, 1 - rate)), float(earlier.max()))
        if freedom > 0
        else float(earlier.max())
        for rate in false_alarm_rates
    )
    return Comparison(value, usual, (0.0,) * len(highs), highs, depth, len(earlier))


def _freedom(earlier: NDArray[np.float64], most: int) -> float:
    """Degrees of freedom of the chi2 whose scatter, relative to its mean, is that of the earlier indices; `most` is that of pure chance."""
    mean = earlier.mean()
    if mean <= 0:
        return 0.0
    scatter = earlier.var(ddof=1) / mean**2
    return float(min(most, 2 / scatter)) if scatter > 0 else float(most)


def compare_shares(
    numerators_W: NDArray[np.float64],
    num_trials_W: NDArray[np.float64],
    num_users_W: NDArray[np.float64],
    false_alarm_rates: Sequence[float],
    sides: int = 2,
) -> Comparison:
    """A share of the judged window. `num_trials_W`, above 0, are the trials, or as many independent ones as tell as much.

    `num_users_W` as in compare_mix. `sides` 1: only one direction will be looked at. ValueError for fewer than 4 earlier windows.
    """
    angle_W = share_angle(numerators_W, num_trials_W)
    scale = float(max(1.0, num_users_W[1:].mean() / num_users_W[0]))
    found = _compare(angle_W, 1 / (num_trials_W + 0.5), scale, false_alarm_rates, sides)
    share = float(numerators_W[0] / num_trials_W[0])
    return _in_unit_of(found, share, angle_share)


def compare_numbers(counts_W: NDArray[np.float64], false_alarm_rates: Sequence[float]) -> Comparison:
    """How many events the judged window has, by logarithms. ValueError for fewer than 4 earlier windows."""
    noise_W = 1 / (counts_W + _SMOOTHING)
    # What it should have had, not what it has, tells how much it may differ.
    noise_W[0] = noise_W[1:].mean()
    found = _compare(np.log(counts_W + _SMOOTHING), noise_W, 1.0, false_alarm_rates, 2)
    return _in_unit_of(found, float(counts_W[0]), lambda log: max(0.0, float(np.exp(min(log, 700.0))) - _SMOOTHING))


def share_angle(numerators: NDArray[np.float64], num_trials: NDArray[np.float64]) -> NDArray[np.float64]:
    """2 asin(sqrt(share)), from 0 to pi, with Anscombe's addition for small numbers; its variance is about 1 / (num_trials + 0.5)."""
    angle: NDArray[np.float64] = 2 * np.arcsin(np.sqrt((numerators + 0.375) / (num_trials + 0.75)))
    return angle


def angle_share(angle: float) -> float:
    """The share of an angle; beyond 0 and pi it stays at 0 and 1."""
    return float(np.sin(min(max(angle, 0.0), np.pi) / 2) ** 2)


def _compare(
    value_W: NDArray[np.float64],
    noise_W: NDArray[np.float64],
    scale: float,
    false_alarm_rates: Sequence[float],
    sides: int,
) -> Comparison:
    """The judged value beside its prediction interval. `noise_W`: the least variance that each value has by counting alone. `scale`: the
    judged window's variance over that of the earlier ones, where it is smaller."""
    num_references = _checked(len(value_W))
    depth = depth_of(num_references)
    distance, noise = [], []
    for window in range(num_references - depth + 1):
        pool = slice(window + 1, window + 1 + depth)
        distance.append(value_W[window] - value_W[pool].mean())
        noise.append(noise_W[window] + noise_W[pool].mean() / depth)
    earlier = np.array(distance[1:])
    centre, num = float(earlier.mean()), len(earlier)
    # A few windows may lie close together by luck: never closer than counting allows.
    by_counting = max(noise[0], float(np.mean(noise[1:])))
    variance = max(float(earlier.var(ddof=1)) * scale, by_counting)
    # What counting explains is known, and not estimated from a few windows: up to twice the degrees of freedom.
    freedom = (num - 1) * (1 + (by_counting / variance) ** 2)
    deviation = np.sqrt(variance * (1 + 1 / num))
    base = float(value_W[1 : 1 + depth].mean())
    lows, highs = [], []
    for rate in false_alarm_rates:
        width = deviation * float(special.stdtrit(freedom, 1 - rate / sides))
        lows.append(base + min(centre - width, float(earlier.min())))
        highs.append(base + max(centre + width, float(earlier.max())))
    return Comparison(float(value_W[0]), base + centre, tuple(lows), tuple(highs), depth, num)


def _in_unit_of(found: Comparison, value: float, back: Callable[[float], float]) -> Comparison:
    lows, highs = (tuple(back(limit) for limit in limits) for limits in (found.lows, found.highs))
    return Comparison(value, back(found.usual), lows, highs, found.depth, found.num_calibrations)


def _checked(num_windows: int) -> int:
    if num_windows < 5:
        raise ValueError(f"{num_windows - 1} earlier windows: give 4 or more")
    return num_windows - 1


@dataclass(frozen=True)
class UserSums:
    """Sums over users of their trials t and hits h: what the share of hits and its error need when a user may have several trials."""

    num_users: int
    trials: int
    hits: int
    trials_squared: int
    hits_squared: int
    hits_trials: int

    @property
    def share(self) -> float:
        return self.hits / self.trials if self.trials else float("nan")

    @property
    def num_independent(self) -> float:
        """As many independent trials as tell as much of the share (Kish 1965), whose variance as a ratio of two sums over users is
        sum((h - p t)^2) / (sum t)^2. Never more than there are trials; as many as users where all do alike."""
        if self.num_users == 0:
            return 0.0
        p = self.share
        squares = self.hits_squared - 2 * p * self.hits_trials + p * p * self.trials_squared
        variance = squares / self.trials**2
        return float(self.num_users) if variance <= 0 else min(float(self.trials), p * (1 - p) / variance)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, as Wilson (1927), from so many independent trials."""
        return wilson_interval(self.share, self.num_independent)


def wilson_interval(share: float, num_trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's (1927) interval of a share; it holds for few trials too, and stays within 0 and 1. (0, 1) without any trial."""
    if num_trials <= 0:
        return 0.0, 1.0
    middle = share + z * z / (2 * num_trials)
    half = z * np.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    below, above = ((middle + sign * half) / (1 + z * z / num_trials) for sign in (-1, 1))
    return max(0.0, float(below)), min(1.0, float(above))
