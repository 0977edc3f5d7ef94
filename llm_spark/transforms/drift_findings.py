"""What the counts of a window mean: each measure's value, limit and verdict in words. In numpy, without Spark.

`findings` judges every measure by the statistics of drift_kernel, at false-alarm rates divided among the measures that can be judged, and that
of missing_rate among its columns (Bonferroni), and by the least change that matters. A measure that cannot be judged says why.

Shapes: W windows, the judged one first; C categories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from llm_spark.transforms.drift_counts import (
    EVENTS,
    HITS,
    ITEM_SQUARES,
    MISSING,
    NEW_ITEMS,
    SUMS_OF_HITS,
    TOTALS,
    UNKNOWN_ITEMS,
    USERS,
    VALUELESS,
    Counts,
)
from llm_spark.transforms.drift_kernel import (
    Comparison,
    UserSums,
    angle_share,
    compare_mix,
    compare_numbers,
    compare_shares,
    psi_parts,
    share_angle,
)
from llm_spark.transforms.drift_scene import INFO, LABELS, Finding, Scene

BOTH, UP, DOWN = "both", "up", "down"
"""Which changes of a share are told."""

_MAX_TYPES = 10
_MANY_TRIALS = np.array([1e12])


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """One measure that is to be judged. `size_W` are the windows' independent units: users, or sessions."""

    scene: Scene
    measure: str
    size_W: NDArray[np.float64]
    unit: str
    of: str = ""
    days_back: int = 0
    """How much earlier its windows are than the calendar's."""
    days_after: int = 0
    """Days after a window that have a part in its value."""

    @property
    def window(self) -> str:
        return self.scene.calendar.moved_back(self.days_back).name(0)

    @property
    def windows(self) -> list[int]:
        """The judged one and the earlier ones that are large enough and hold no excluded day."""
        least = self.scene.settings.min_users
        large = (window for window in self.scene.known if self.size_W[window] >= least)
        return [0, *(window for window in large if self.excluded_day(window) is None)]

    def excluded_day(self, window: int) -> date | None:
        return self.scene.calendar.moved_back(self.days_back).excluded_day(window, self.days_after)

    @property
    def why_unmeasured(self) -> str:
        size, least = int(self.size_W[0]), self.scene.settings.min_users
        if self.measure in self.scene.absent:
            return self.scene.absent[self.measure]
        if (excluded := self.excluded_day(0)) is not None:
            return f"{excluded} is among drift.exclude_dates"
        if size == 0:
            return f"no {self.unit} {self.window}"
        unit = self.unit.replace("s ", " ", 1) if size == 1 else self.unit
        return f"{size:,} {unit} {self.window}, fewer than drift.min_users {least}" if size < least else ""

    @property
    def why_not_judged(self) -> str:
        num, asked = len(self.windows) - 1, self.scene.settings.min_references
        return self.why_unmeasured or (f"{num} windows of {asked}" if num < asked else "")

    def finding(self, rates: Sequence[float]) -> Finding:
        """`rates`: the false alarms that this measure is allowed, for each severity."""
        if why := self.why_not_judged:
            value, said = (None, "") if self.why_unmeasured else self.measured()
            text = f"{said}; not judged: {why}" if said else f"not judged: {why}"
            return Finding(self.measure, self.of, self.window, value, None, INFO, text, why)
        return self.judged(rates)

    def measured(self) -> tuple[float | None, str]:
        """The value and its words where there is nothing to compare it with; nothing where it then means nothing."""
        return None, ""

    def judged(self, rates: Sequence[float]) -> Finding:
        raise NotImplementedError

    def verdict(self, found: Comparison, limit: float, said: str, further: str = "") -> Finding:
        num_beyond = sum(not low <= found.value <= high for low, high in zip(found.lows, found.highs, strict=True))
        severity = (INFO, *(severity.name for severity in self.scene.severities))[num_beyond]
        verdict = "as usual" if severity == INFO else f"{severity}, more than {self.scene.earlier} explain{further}"
        return Finding(self.measure, self.of, self.window, found.value, limit, severity, f"{said}: {verdict}")


@dataclass(frozen=True, kw_only=True)
class _Mix(_Subject):
    def judged(self, rates: Sequence[float]) -> Finding:
        counts_WC = self.scene.counts.mix(self.measure)[self.windows]
        found = compare_mix(counts_WC, self.size_W[self.windows], rates)
        least = [severity.min_psi for severity in self.scene.severities]
        found = _widened(found, found.lows, [max(high, psi) for high, psi in zip(found.highs, least, strict=True)])
        said = f"PSI {found.value:.3f}, limit {found.highs[0]:.3f}, error above {found.highs[1]:.3f}"
        return self.verdict(found, found.highs[0], said, self._largest_part(counts_WC, found.depth))

    def _largest_part(self, counts_WC: NDArray[np.float64], depth: int) -> str:
        """The category that changed most, in words. One with so few events that they may be a single user's is not named."""
        before_C, now_C = counts_WC[1 : 1 + depth].sum(axis=0), counts_WC[0]
        most = int(np.argmax(psi_parts(before_C, now_C)))
        before, now = (f"{100 * counts[most] / counts.sum():.1f} %" for counts in (before_C, now_C))
        is_rare = max(before_C[most], now_C[most]) < self.scene.settings.min_users
        category = self.scene.counts.categories(self.measure)[most]
        return f"; most of it: {'a rare one' if is_rare else self._named(category)} from {before} to {now}"

    def _named(self, category: str | int) -> str:
        if isinstance(category, int):
            return "a group of rarer ones"
        if self.measure == "user_ids":
            return "one form"
        if self.measure == "score_distribution":
            return f"chances from {2 ** -(int(category) + 1):.2g} to {2 ** -int(category):.2g}"
        words = {"hours": f"{category} h UTC", "session_length": f"sessions of {category} events or a few more"}
        return words.get(self.measure, f"'{category}'")


@dataclass(frozen=True, kw_only=True)
class _Share(_Subject):
    numerator_W: NDArray[np.float64]
    trials_W: NDArray[np.float64]
    """Or as many independent ones as tell as much."""
    side: str = BOTH
    told: str = " of events"
    """Of what it is a share."""

    def said(self) -> str:
        return f"{100 * self.numerator_W[0] / self.trials_W[0]:.1f} %{self.told}"

    def measured(self) -> tuple[float | None, str]:
        return float(self.numerator_W[0] / self.trials_W[0]), self.said()

    def judged(self, rates: Sequence[float]) -> Finding:
        used, sides = self.windows, 2 if self.side == BOTH else 1
        found = compare_shares(self.numerator_W[used], self.trials_W[used], self.size_W[used], rates, sides)
        least = [severity.min_share_change for severity in self.scene.severities]
        middle = float(share_angle(found.usual * _MANY_TRIALS, _MANY_TRIALS)[0])
        lows = [min(low, angle_share(middle - change)) for low, change in zip(found.lows, least, strict=True)]
        highs = [max(high, angle_share(middle + change)) for high, change in zip(found.highs, least, strict=True)]
        found = _widened(found, [0.0] * 2 if self.side == UP else lows, [1.0] * 2 if self.side == DOWN else highs)
        usual, low, high = (f"{100 * share:.1f} %" for share in (found.usual, found.lows[0], found.highs[0]))
        limits = {BOTH: f"limits {low} and {high}", UP: f"limit {high}", DOWN: f"limit {low}"}[self.side]
        is_low = self.side == DOWN or (self.side == BOTH and found.value < found.usual)
        limit = found.lows[0] if is_low else found.highs[0]
        return self.verdict(found, limit, f"{self.said()}, usually {usual}, {limits}")


@dataclass(frozen=True, kw_only=True)
class _NewItems(_Share):
    @property
    def windows(self) -> list[int]:
        return [0, *(window for window in super().windows[1:] if window in self.scene.with_a_past)]

    def measured(self) -> tuple[float | None, str]:
        return super().measured() if 0 in self.scene.with_a_past else (None, "")


@dataclass(frozen=True, kw_only=True)
class _Volume(_Subject):
    @property
    def windows(self) -> list[int]:
        # A day without events is what this measure is for, also among the earlier ones.
        return [0, *self.scene.known]

    @property
    def why_unmeasured(self) -> str:
        excluded = self.excluded_day(0)
        return "" if excluded is None else f"{excluded} is among drift.exclude_dates"

    def finding(self, rates: Sequence[float]) -> Finding:
        found = super().finding(rates)
        is_silent = found.value == 0 and bool(found.not_judged)
        return replace(found, severity=self.scene.severities[0].name) if is_silent else found

    def measured(self) -> tuple[float | None, str]:
        return float(self.size_W[0]), f"{self.size_W[0]:,.0f} event{'' if self.size_W[0] == 1 else 's'}"

    def judged(self, rates: Sequence[float]) -> Finding:
        found = compare_numbers(self.size_W[self.windows], rates)
        least = [severity.min_volume_ratio for severity in self.scene.severities]
        lows = [min(low, found.usual / ratio) for low, ratio in zip(found.lows, least, strict=True)]
        highs = [max(high, found.usual * ratio) for high, ratio in zip(found.highs, least, strict=True)]
        found = _widened(found, lows, highs)
        limits = f"usually {found.usual:,.0f}, limits {found.lows[0]:,.0f} and {found.highs[0]:,.0f}"
        limit = found.lows[0] if found.value < found.usual else found.highs[0]
        return self.verdict(found, limit, f"{found.value:,.0f} events, {limits}")


def _widened(found: Comparison, lows: Sequence[float], highs: Sequence[float]) -> Comparison:
    """With these limits; those of an error never lie within those of a warning."""
    return replace(found, lows=(lows[0], min(lows)), highs=(highs[0], max(highs)))


def findings(scene: Scene) -> list[Finding]:
    """Every measure's finding, judged or with the reason why not, in the order of config.drift.MEASURES."""
    subjects = _subjects(scene)
    num_judged = Counter(subject.measure for subject in subjects if not subject.why_not_judged)
    found = [_unknown_items(scene)]
    for subject in subjects:
        shares = max(1, len(num_judged) * num_judged[subject.measure])
        found.append(subject.finding([severity.false_alarm_rate / shares for severity in scene.severities]))
    order = list(LABELS)
    return sorted(found, key=lambda finding: order.index(finding.measure))


def _subjects(scene: Scene) -> list[_Subject]:
    counts = scene.counts
    events_W, users_W = (counts.of_category(TOTALS, name) for name in (EVENTS, USERS))
    new_W, squares_W = (counts.of_category(TOTALS, name) for name in (NEW_ITEMS, ITEM_SQUARES))
    # All events of an item are new at once: as many independent trials as equally frequent items would have that concentrate as little.
    items_W = events_W**2 / np.maximum(squares_W, 1)
    of_users = "users on"
    units = {"session_length": "sessions that began on", "score_distribution": "users with predictions as of"}
    subjects: list[_Subject] = [_Volume(scene=scene, measure="volume", size_W=events_W, unit="events on")]
    of_events = ("item_mix", "event_types", "hours", "sources", "item_ids", "user_ids")
    for measure in (*(measure for measure in of_events if measure in counts.by_measure), *units):
        size_W = counts.mix(measure).sum(axis=1) if measure in units else users_W
        back = scene.scored_days_back if measure == "score_distribution" else 0
        unit = units.get(measure, of_users)
        subjects.append(_Mix(scene=scene, measure=measure, size_W=size_W, unit=unit, days_back=back))
    subjects.append(
        _NewItems(
            scene=scene,
            measure="new_item_share",
            size_W=users_W,
            unit=of_users,
            numerator_W=new_W / np.maximum(events_W, 1) * items_W,
            trials_W=items_W,
            side=UP,
        )
    )
    for category in counts.categories(TOTALS):
        if str(category).startswith(MISSING):
            of, missing_W = str(category).removeprefix(MISSING), counts.of_category(TOTALS, category)
            subjects.append(_missing(scene, of, missing_W, events_W, users_W, " of events"))
    for event_type in _types_with_values(counts):
        missing_W, of_type_W = (counts.of_category(measure, event_type) for measure in (VALUELESS, "event_types"))
        told, few_W = f" of events of type '{event_type}'", np.minimum(users_W, of_type_W)
        subjects.append(_missing(scene, f"value of {event_type}", missing_W, of_type_W, few_W, told))
    return [*subjects, _hit_rate(scene)]


def _missing(
    scene: Scene,
    of: str,
    missing_W: NDArray[np.float64],
    trials_W: NDArray[np.float64],
    size_W: NDArray[np.float64],
    told: str,
) -> _Share:
    return _Share(
        scene=scene,
        measure="missing_rate",
        of=of,
        size_W=size_W,
        unit="users on",
        numerator_W=missing_W,
        trials_W=trials_W,
        told=told,
    )


def _types_with_values(counts: Counts) -> list[str]:
    """The most frequent event types that carried values before: others have none to miss."""
    num_before = {
        str(event_type): counts.of_category("event_types", event_type)[1:].sum()
        for event_type in counts.categories("event_types")
        if isinstance(event_type, str)
        and counts.of_category(VALUELESS, event_type)[1:].sum()
        < counts.of_category("event_types", event_type)[1:].sum()
    }
    return sorted(num_before, key=lambda event_type: (-num_before[event_type], event_type))[:_MAX_TYPES]


def _hit_rate(scene: Scene) -> _Share:
    settings, counts = scene.settings, scene.counts
    sums_W = [
        UserSums(*(int(counts.of_category(HITS, name)[window]) for name in SUMS_OF_HITS))
        for window in range(counts.num_windows)
    ]
    trials_W = np.array([sums.num_independent for sums in sums_W])
    low, high = sums_W[0].interval()
    predicted = scene.calendar.moved_back(settings.hit_days).name(0)
    return _Share(
        scene=scene,
        measure="hit_rate",
        size_W=np.array([float(sums.num_users) for sums in sums_W]),
        unit=f"users with an event within {settings.hit_days} days after predictions as of",
        days_back=settings.hit_days,
        days_after=settings.hit_days,
        numerator_W=np.array([sums.share if sums.trials else 0.0 for sums in sums_W]) * trials_W,
        trials_W=trials_W,
        side=DOWN,
        told=f" [{100 * low:.1f} %, {100 * high:.1f} %] of {sums_W[0].num_users:,} users: their next event was among the first "
        f"{settings.hit_k} predicted as of {predicted}",
    )


def _unknown_items(scene: Scene) -> Finding:
    """Held against its mean in the earlier windows and a fixed rise: what a model cannot know is no matter of chance."""
    counts, measure = scene.counts, "unknown_item_share"
    events_W = counts.of_category(TOTALS, EVENTS)
    unknown = _Share(
        scene=scene,
        measure=measure,
        size_W=counts.of_category(TOTALS, USERS),
        unit="users on",
        numerator_W=counts.of_category(TOTALS, UNKNOWN_ITEMS),
        trials_W=events_W,
    )
    used = unknown.windows[1:]
    if unknown.why_unmeasured or not used:
        # The rates play no part, for it is not judged.
        return unknown.finding(())
    share = float(unknown.numerator_W[0] / events_W[0])
    usual = float(np.mean(unknown.numerator_W[used] / events_W[used]))
    limit = usual + scene.settings.max_unknown_rise
    severity = scene.severities[0].name if share > limit else INFO
    verdict = "as usual" if severity == INFO else f"{severity}, the model can recommend none of these"
    text = f"{unknown.said()}, usually {100 * usual:.1f} %, limit {100 * limit:.1f} %: {verdict}"
    return Finding(measure, "", unknown.window, share, limit, severity, text)
