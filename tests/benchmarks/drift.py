"""How often drift tells what has changed, and how often what has not: python -m tests.benchmarks.drift [--quick]

Seventeen simulated weeks of a shop (simulated_weeks.py) for each seed: quiet (every day alike, but for chance), seasonal (weekdays, growth, a
sale every four weeks, items that come and go, weeks that differ for no reason), or small (seasonal, of a tenth of the users). The newest day,
or week, is judged as it is, and then with each shift and each fault done to it. Told is a warning or an error of any measure; named, one of the
measure that is meant; the false alarms are those of windows to which nothing was done. For comparison the customary limit, PSI .1 against the
same earlier windows, pooled, for mixes of items, types, hours, session lengths and chances. What is detected in small weeks is shown and held
to no bar; their false alarms are.

Windows are counted in numpy and judged as `llm-spark drift` judges them; tests/integration/test_drift.py holds Spark's counts against these.
In the JSON line the ratios are shares of windows, of which those of false alarms should be at most their bars.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_spark.config import DriftConfig
from llm_spark.config.drift import ERROR, WARNING
from llm_spark.transforms.drift_findings import findings
from llm_spark.transforms.drift_kernel import psi
from llm_spark.transforms.drift_rules import Advice, retraining_advice
from llm_spark.transforms.drift_scene import Finding, Scene
from tests.benchmarks.simulated_weeks import (
    FAULTS,
    SHIFTS,
    changed,
    counts_of,
    judged_calendar,
    scene_of,
    simulated_weeks,
)

NOTHING = "nothing"
CHANGES = (NOTHING, *SHIFTS, *FAULTS)
BARS = {
    "faults_named": 0.95,
    "shifts_named_quiet": 0.9,
    "shifts_named_seasonal": 0.6,
    "false_warnings": 0.05,
    "false_errors": 0.01,
}
_CUSTOMARY_LIMIT = 0.1
_CUSTOMARY_MEASURES = ("item_mix", "event_types", "hours", "session_length", "score_distribution")


@dataclass
class Tally:
    """Of one kind of weeks, one size of window, and what was done to it."""

    num: int = 0
    num_told: int = 0
    num_errors: int = 0
    num_named: int = 0
    advice: Counter[str] = field(default_factory=Counter)
    by_measure: Counter[str] = field(default_factory=Counter)
    num_customary: int = 0

    def add(self, found: Sequence[Finding], meant: Sequence[str], advice: Advice, customary: bool) -> None:
        told = {finding.measure for finding in found if finding.severity in (WARNING, ERROR)}
        self.num += 1
        self.num_told += bool(told)
        self.num_errors += any(finding.severity == ERROR for finding in found)
        self.num_named += bool(told & set(meant))
        self.advice["withheld" if advice.is_withheld else advice.action] += 1
        self.by_measure.update(told)
        self.num_customary += customary


Tallies = dict[str, Tally]
"""By what was done to the newest window."""


KINDS = {"quiet": (False, 3_000), "seasonal": (True, 3_000), "small": (True, 300)}
"""Kind of weeks -> whether they have seasons, and users in all."""


def measure(
    seeds: Sequence[int], kind: str, window_days: Sequence[int] = (1, 7), changes: Sequence[str] = CHANGES
) -> dict[int, Tallies]:
    """Tallies for each size of window, in days."""
    is_seasonal, num_users = KINDS[kind]
    tallies = {days: {change: Tally() for change in changes} for days in window_days}
    for seed in seeds:
        weeks = simulated_weeks(seed, is_seasonal, num_users)
        for days, of_changes in tallies.items():
            settings = DriftConfig(window_days=days)
            calendar = judged_calendar(weeks, settings)
            earlier = counts_of(weeks, calendar, settings, range(1, settings.num_references + 1))
            for change, tally in of_changes.items():
                done = weeks if change == NOTHING else changed(weeks, change, calendar, seed)
                scene = scene_of(done, calendar, settings, earlier)
                found = findings(scene)
                meant = (SHIFTS | FAULTS)[change][1] if change != NOTHING else ()
                tally.add(found, meant, retraining_advice(found, settings.rules), _customary_alarm(scene))
    return tallies


def _customary_alarm(scene: Scene) -> bool:
    """PSI above .1 in any mix, against all earlier windows pooled."""
    for name in _CUSTOMARY_MEASURES:
        counts_WC = scene.counts.mix(name)
        if counts_WC[0].sum() == 0 or psi(counts_WC[1:].sum(axis=0), counts_WC[0]) > _CUSTOMARY_LIMIT:
            return True
    return False


def line(change: str, tally: Tally) -> str:
    numbers = (tally.num_told, tally.num_errors, tally.num_named, tally.num_customary)
    told, errors, named, customary = (f"{number / tally.num:.1%}" for number in numbers)
    advice = ", ".join(f"{name} {number / tally.num:.0%}" for name, number in tally.advice.most_common())
    return f"{change:<28}{told:>7}{errors:>7}{'' if change == NOTHING else named:>7}{customary:>8}  {advice}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds; for development")
    arguments = parser.parse_args()
    seeds = range(10 if arguments.quick else 60)
    began = time.perf_counter()
    rates: dict[str, float] = {}
    sums: Counter[str] = Counter()
    for kind in KINDS:
        for days, tallies in measure(seeds, kind).items():
            unit = "day" if days == 1 else "week"
            print(f"\n{kind} weeks, the newest {unit} judged, {len(seeds)} seeds")
            print(f"{'what was done to it':<28}{'told':>7}{'error':>7}{'named':>7}{'PSI .1':>8}  advice")
            for change, tally in tallies.items():
                print(line(change, tally))
                group = NOTHING if change == NOTHING else f"shifts {kind}" if change in SHIFTS else "faults"
                if kind != "small" or change == NOTHING:
                    sums.update({f"num_{group}": tally.num, f"named_{group}": tally.num_named})
                if change == NOTHING:
                    sums.update(warned=tally.num_told, erred=tally.num_errors, customary=tally.num_customary)
                    by_measure = ", ".join(f"{name} {number}" for name, number in tally.by_measure.most_common())
                    print(f"  false alarms by measure: {by_measure or 'none'}")
                number = tally.num_told if change == NOTHING else tally.num_named
                rates[f"{change} ({kind} {unit})"] = number / tally.num
    summary = {
        "faults_named": sums["named_faults"] / sums["num_faults"],
        "shifts_named_quiet": sums["named_shifts quiet"] / sums["num_shifts quiet"],
        "shifts_named_seasonal": sums["named_shifts seasonal"] / sums["num_shifts seasonal"],
        "false_warnings": sums["warned"] / sums["num_nothing"],
        "false_errors": sums["erred"] / sums["num_nothing"],
        "false_customary": sums["customary"] / sums["num_nothing"],
    }
    print(f"\n{time.perf_counter() - began:.0f} s")
    for name, rate in summary.items():
        bar = f"{BARS[name]:.1%}" if name in BARS else ""
        print(f"{name:<24}{rate:>8.1%}{bar:>8}")
    ratios, rates = ({name: round(rate, 4) for name, rate in numbers.items()} for numbers in (summary, rates))
    print(json.dumps({"benchmark": "drift", "ratios": ratios, "bars": BARS, "rates": rates}))


if __name__ == "__main__":
    main()
