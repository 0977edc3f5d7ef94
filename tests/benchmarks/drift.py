"""How often drift tells what has changed, and how often what has not: python -m tests.benchmarks.drift [--quick]

Seventeen simulated weeks of a shop (simulated_weeks.py) for each seed, quiet (every day alike, but for chance) or seasonal (weekdays, growth, a
sale every four weeks, items that come and go, weeks that differ for no reason). The newest day, or week, is judged as it is, and then with each
shift and each fault done to it. Told is a warning or an error of any measure; named, one of the measure that is meant; the false alarms are
those of windows to which nothing was done. For comparison the customary limits, PSI .1 and .25 against all earlier days pooled, whatever their
weekday, have the same windows.

Windows are counted in numpy and judged as `llm-spark drift` judges them; tests/integration/test_drift.py holds Spark's counts against these.
The JSON line has rates where other benchmarks have ratios; bars are least rates, and for false alarms the most.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, field

from llm_spark.config import DriftConfig
from llm_spark.config.drift import ERROR, WARNING
from llm_spark.transforms.drift_findings import Finding, Scene, findings
from llm_spark.transforms.drift_kernel import psi
from llm_spark.transforms.drift_rules import retraining_advice
from tests.benchmarks.simulated_weeks import (
    FAULTS,
    SHIFTS,
    Weeks,
    changed,
    counts_of,
    judged_calendar,
    scene_of,
    simulated_weeks,
)

NOTHING = "nothing"
BARS = {"detected_shifts": 0.9, "detected_faults": 0.95, "false_warnings": 0.05, "false_errors": 0.01}
_CUSTOMARY_WARNING, _CUSTOMARY_ERROR = 0.1, 0.25
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

    def add(self, found: list[Finding], meant: tuple[str, ...], advice: str, customary: bool) -> None:
        told = {finding.measure for finding in found if finding.severity in (WARNING, ERROR)}
        self.num += 1
        self.num_told += bool(told)
        self.num_errors += any(finding.severity == ERROR for finding in found)
        self.num_named += bool(told & set(meant))
        self.advice[advice] += 1
        self.by_measure.update(told)
        self.num_customary += customary


def measure(num_seeds: int, settings: DriftConfig, is_seasonal: bool, first_seed: int = 0) -> dict[str, Tally]:
    """Tallies by what was done to the newest window."""
    tallies = {change: Tally() for change in (NOTHING, *SHIFTS, *FAULTS)}
    for seed in range(first_seed, first_seed + num_seeds):
        weeks = simulated_weeks(seed, is_seasonal)
        calendar = judged_calendar(weeks, settings)
        earlier = counts_of(weeks, calendar, settings, range(1, settings.num_references + 1))
        for change, tally in tallies.items():
            done: Weeks = weeks if change == NOTHING else changed(weeks, change, calendar, seed)
            scene = scene_of(done, calendar, settings, earlier)
            found = findings(scene)
            meant = (SHIFTS | FAULTS)[change][1] if change != NOTHING else ()
            action = retraining_advice(found, settings.rules)
            advice = "withheld" if action.is_withheld else action.action
            tally.add(found, meant, advice, _customary_alarm(scene))
    return tallies


def _customary_alarm(scene: Scene) -> bool:
    """PSI above .1 in any mix, against all earlier windows pooled."""
    for name in _CUSTOMARY_MEASURES:
        counts_WC = scene.counts.mix(name)
        if counts_WC[0].sum() == 0:
            return True
        if psi(counts_WC[1:].sum(axis=0), counts_WC[0]) > _CUSTOMARY_WARNING:
            return True
    return False


def share(number: int, of: int) -> float:
    return number / of if of else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds; for development")
    arguments = parser.parse_args()
    num_seeds = 20 if arguments.quick else 200
    began = time.perf_counter()
    rates: dict[str, float] = {}
    sums: Counter[str] = Counter()
    for window_days in (1, 7):
        settings = DriftConfig(window_days=window_days)
        for is_seasonal in (False, True):
            kind = "seasonal" if is_seasonal else "quiet"
            unit = "day" if window_days == 1 else "week"
            print(f"\n{kind} weeks, the newest {unit} judged, {num_seeds} seeds")
            print(f"{'what was done to it':<28}{'told':>7}{'error':>7}{'named':>7}{'PSI .1':>8}  advice")
            for change, tally in measure(num_seeds, settings, is_seasonal).items():
                told, errors, named, customary = (
                    share(number, tally.num)
                    for number in (tally.num_told, tally.num_errors, tally.num_named, tally.num_customary)
                )
                said = ", ".join(f"{name} {number / tally.num:.0%}" for name, number in tally.advice.most_common())
                named_text = "" if change == NOTHING else f"{named:.1%}"
                print(f"{change:<28}{told:>7.1%}{errors:>7.1%}{named_text:>7}{customary:>8.1%}  {said}", flush=True)
                group = "shifts" if change in SHIFTS else "faults"
                if change == NOTHING:
                    told_by = ", ".join(f"{name} {number}" for name, number in tally.by_measure.most_common())
                    print(f"  by measure: {told_by or 'none'}")
                    sums.update(
                        quiet=tally.num, warned=tally.num_told, erred=tally.num_errors, custom=tally.num_customary
                    )
                    rates[f"false_{kind}_{unit}"] = told
                else:
                    sums.update({group: tally.num, f"named_{group}": tally.num_named})
                    rates[f"{change} ({kind} {unit})"] = named
    summary = {
        "detected_shifts": share(sums["named_shifts"], sums["shifts"]),
        "detected_faults": share(sums["named_faults"], sums["faults"]),
        "false_warnings": share(sums["warned"], sums["quiet"]),
        "false_errors": share(sums["erred"], sums["quiet"]),
        "false_customary": share(sums["custom"], sums["quiet"]),
    }
    print(f"\n{time.perf_counter() - began:.0f} s")
    for name, rate in summary.items():
        bar = f"{BARS[name]:.1%}" if name in BARS else ""
        print(f"{name:<20}{rate:>8.1%}{bar:>8}")
    rounded = {name: round(rate, 4) for name, rate in (summary | rates).items()}
    print(json.dumps({"benchmark": "drift", "rates": rounded, "bars": BARS}))


if __name__ == "__main__":
    main()
