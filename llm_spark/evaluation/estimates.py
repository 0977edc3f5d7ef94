"""From sums to figures: every metric of one recommender, and of one less another on the same positions, with its interval.

Shape suffixes: R replicates (the first one counts everybody once), C columns, G groups of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm_spark.evaluation.bootstrap import NUM_GROUPS, jackknife_interval, percentile_interval
from llm_spark.evaluation.slices import ALL, CONFIDENCE_SLICES, CONFIDENCES, OWN_SLICES, SLICES
from llm_spark.evaluation.sums_kernel import LISTED, MetricRules, SliceSums

MODEL = "model"
"""The evaluated model's name among the recommenders."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """One figure; without an interval where fewer than two users, or no replicate, have a say in it."""

    slice: str
    name: str
    value: float
    ci_low: float | None
    ci_high: float | None
    num_examples: int
    """What the value is a mean over: positions, or as the metric says."""


@dataclass(frozen=True)
class _Resampled:
    """A figure, then what it is in each replicate (NaN where nobody was drawn)."""

    value_R: Floats
    num_examples: int
    of_one_user: bool

    def estimate(self, slice_name: str, name: str) -> Estimate:
        low, high = None, None
        if not self.of_one_user and not np.isnan(self.value_R[1:]).all():
            low, high = percentile_interval(self.value_R[1:])
        return Estimate(slice_name, name, float(self.value_R[0]), low, high, self.num_examples)


@dataclass(frozen=True)
class Measured:
    """One recommender on the test positions: the sums of every slice under every replicate, and how many items it recommends."""

    rules: MetricRules
    sums: dict[int, SliceSums]
    num_covered: NDArray[np.int64]
    """For each k: items recommended to anybody, then those without each group of users [len(ks), 1 + G]."""

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[int, bytes]], rules: MetricRules) -> Measured:
        """From the rows (slice, content) of `merged_sums`."""
        sums: dict[int, SliceSums] = {}
        num_covered = np.zeros((len(rules.ks), 1 + NUM_GROUPS), np.int64)
        for number, content in rows:
            if number == LISTED:
                num_covered = np.frombuffer(content, np.int64).reshape(num_covered.shape)
            else:
                sums[number] = SliceSums.of_bytes(content, rules, number)
        return cls(rules, sums, num_covered)

    @property
    def num_positions(self) -> int:
        return round(self._column(0, "positions")[0]) if self.sums else 0

    @property
    def of_one_user(self) -> bool:
        return bool(self.sums) and self.sums[0].first_user == self.sums[0].last_user

    def estimates(self) -> list[Estimate]:
        """Every metric of every slice that has anything to be a mean over."""
        return (
            [resampled.estimate(*key) for key, resampled in self._resampled()] + self._coverage() + self._calibration()
        )

    def less(self, other: Measured) -> list[Estimate]:
        """Every metric that both have, this one's less the other's, paired: both count the same users equally often in each replicate.

        Slices that a recommender's own answer cuts are left out. ValueError where the two were not measured on the same positions.
        """
        ours, theirs = self._shared(), other._shared()
        ours._require_same_positions(theirs)
        of_theirs = dict(theirs._resampled())
        differences = [
            replace(each, value_R=each.value_R - of_theirs[key].value_R).estimate(*key)
            for key, each in ours._resampled()
            if key in of_theirs
        ]
        return differences + self._coverage(other)

    def _shared(self) -> Measured:
        """Without the slices that are of this recommender alone."""
        return replace(self, sums={number: part for number, part in self.sums.items() if number not in OWN_SLICES})

    def _require_same_positions(self, other: Measured) -> None:
        same = set(self.sums) == set(other.sums) and all(
            np.array_equal(self._column(number, "positions"), other._column(number, "positions"))
            for number in self.sums
        )
        if not same:
            raise ValueError(
                f"a paired comparison needs the same positions: {self.num_positions:,} stand against {other.num_positions:,}, "
                "or they are not the same users' or slices'"
            )

    def _column(self, number: int, name: str) -> Floats:
        return self.sums[number].sums_RC[:, self.rules.columns(number).index(name)]

    def _resampled(self) -> Iterator[tuple[tuple[str, str], _Resampled]]:
        for number in sorted(self.sums):
            part = self.sums[number]
            for metric in self.rules.rank_metrics if number else self.rules.metrics:
                gain_R, per_R = self._column(number, metric.gain), self._column(number, metric.per)
                if per_R[0] == 0:
                    continue
                value_R = np.divide(gain_R, per_R, out=np.full_like(gain_R, np.nan), where=per_R > 0)
                resampled = _Resampled(value_R, round(per_R[0]), part.first_user == part.last_user)
                yield (SLICES[number], metric.name), resampled

    def _calibration(self) -> list[Estimate]:
        """How far to trust its probabilities, from the bins of the first item's probability; nothing where it says none.

        calibration_error: mean over positions of |accuracy - confidence| of the bin that each lies in (Guo et al. 2017). And were lists shown
        only where the first item is at least so probable, of each bound in `CONFIDENCES` the share of positions that would be answered, and
        the accuracy there.
        """
        bins = [number for number in CONFIDENCE_SLICES if number in self.sums]
        if not bins:
            return []
        total_R = self._column(0, "answers")
        apart_BR = [np.abs(self._column(b, "accuracy") - self._column(b, "confidence")) for b in bins]
        found = [self._of_answers("calibration_error", ALL, np.sum(apart_BR, axis=0), total_R)]
        for place, bound in enumerate(CONFIDENCES, start=1):
            kept = [b for b in CONFIDENCE_SLICES[place:] if b in self.sums]
            if not kept:
                break
            slice_name = f"confidence_at_least_{bound:g}"
            answered_R, hits_R = (
                np.sum([self._column(b, name) for b in kept], axis=0) for name in ("answers", "accuracy")
            )
            found.append(self._of_answers("answered", slice_name, answered_R, total_R))
            found.append(self._of_answers("accuracy", slice_name, hits_R, answered_R))
        return found

    def _of_answers(self, name: str, slice_name: str, gain_R: Floats, per_R: Floats) -> Estimate:
        value_R = np.divide(gain_R, per_R, out=np.full_like(gain_R, np.nan), where=per_R > 0)
        return _Resampled(value_R, round(per_R[0]), self.of_one_user).estimate(slice_name, name)

    def _coverage(self, other: Measured | None = None) -> list[Estimate]:
        """coverage@k, the share of the items that are in any list within k; less the other's, where given.

        In a bootstrap replicate a third of the users are missing, and with them what only they were recommended: its coverages lie below the
        value, and so would an interval made of them. So groups of users are left out one at a time instead.
        """
        if not self.sums or not self.num_covered[-1, 0] or (other is not None and not other.num_covered[-1, 0]):
            return []
        covered = self.num_covered - (0 if other is None else other.num_covered)
        found = []
        for k, num_covered_G in zip(self.rules.ks, covered / self.rules.items.num_items, strict=True):
            low, high = None, None
            if not self.of_one_user:
                low, high = jackknife_interval(num_covered_G[0], num_covered_G[1:])
                low, high = max(low, 0.0 if other is None else -1.0), min(high, 1.0)
            found.append(Estimate(ALL, f"coverage@{k}", float(num_covered_G[0]), low, high, self.num_positions))
        return found
