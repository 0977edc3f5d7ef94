"""Whether a newly trained model may take the champion's place: a pure decision on what was measured, with its reasons in sentences.

Against the champion it is a test of non-inferiority. With d the challenger's metric less the champion's on the same positions, the hypothesis
to be rejected is that the challenger loses more than the margin, d < -max_loss. So it is the *lower* end of d's interval that must not lie
below -max_loss; at 95 %, two-sided, a model that is worse than that passes in 2.5 of 100 nights at most. To ask it of the upper end would
let through whatever is not proven worse, and with few positions nothing can be proven: the smaller the test, the worse the model that
passes. (Wellek 2010, Testing Statistical Hypotheses of Equivalence and Noninferiority, chapter 2.)

Against a baseline it is a test of superiority: the lower end, or by setting the difference itself, must lie above 0.

Outcomes are guarded likewise: no more may be lost of any that the champion foretells too. A model that foretells outcomes alone is judged by
them alone, and must beat in each the regression that a marketer would fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llm_spark.config import GateConfig
from llm_spark.config.gate import BY_INTERVAL, NOT_AT_ALL

POPULARITY = "popularity"
POSITIONS, MOMENTS = "positions", "moments"
"""What a metric is a mean over."""


@dataclass(frozen=True)
class Measured:
    """A metric, or a difference of two on the same positions, with its 95 % interval; None where there can be none (one user)."""

    value: float
    low: float | None
    high: float | None
    num_positions: int
    """Or moments, of an outcome."""

    def as_gain(self, of_other: float) -> Measured:
        """Of an error less another's: how much smaller it is, in shares of the other's, which is `of_other`."""
        low, high = (None if end is None else -end / of_other for end in (self.high, self.low))
        return Measured(-self.value / of_other, low, high, self.num_positions)


@dataclass(frozen=True)
class MeasuredOutcome:
    """How well one outcome is foretold, less how well others foretell it: in the area under the curve; of an amount, in shares of the other's
    squared error of its logarithm. More than 0 is in the challenger's favour. None where it was not measured."""

    measure: str
    """Named in sentences: what of which outcome."""
    over_champion: Measured | None
    over_regression: Measured | None
    champion_foretells_it: bool = True


@dataclass(frozen=True)
class Evidence:
    """All that the gate looks at."""

    metric: str
    champion_id: str | None
    """Whom it would follow; None for the first model."""
    certificate_objection: str
    """Why the sequences are not certified to be free of leakage; empty where they are."""
    num_ranks: int
    """How many were to train it."""
    finished_ranks: tuple[int, ...]
    """Those of them whose completion record its artifact holds."""
    over_champion: Measured | None
    """Its metric less the champion's; None where that was not measured."""
    over_baselines: Mapping[str, Measured] = field(default_factory=dict)
    """Its metric less each baseline's."""
    expected_baselines: tuple[str, ...] = (POPULARITY,)
    """Those that should have been measured."""
    foretells_items: bool = True
    """False for a model that foretells outcomes alone."""
    champion_foretells_items: bool = True
    outcomes: tuple[MeasuredOutcome, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and why: where it refused, what spoke against the model; where it promoted, what spoke for it."""

    promoted: bool
    sentences: list[str]
    is_final: bool = True
    """False where all that speaks against it is what could not be measured: the next run may."""


@dataclass(frozen=True)
class _Finding:
    passed: bool
    sentence: str
    is_final: bool = True


def decide(evidence: Evidence, rules: GateConfig) -> Decision:
    """Every condition is looked at, so that a refusal names all that is wrong at once."""
    findings = list(_findings(evidence, rules))
    promoted = all(finding.passed for finding in findings)
    telling = [finding for finding in findings if finding.passed == promoted]
    return Decision(promoted, [f.sentence for f in telling], promoted or any(f.is_final for f in telling))


def _findings(evidence: Evidence, rules: GateConfig) -> Iterator[_Finding]:
    if evidence.certificate_objection:
        yield _Finding(False, evidence.certificate_objection)
    yield _ranks(evidence)
    if evidence.champion_id is None:
        yield _Finding(True, "there is no champion yet to compare it with")
    elif evidence.foretells_items:
        whom = f"that of champion {evidence.champion_id}"
        yield _no_worse(evidence.metric, evidence.over_champion, whom, rules.max_loss)
    elif evidence.champion_foretells_items:
        yield _Finding(False, f"it foretells outcomes alone, and champion {evidence.champion_id} next items too")
    if evidence.foretells_items:
        yield from _baselines(evidence, rules)
    for outcome in evidence.outcomes:
        yield from _outcome(evidence, outcome, rules)


def _ranks(evidence: Evidence) -> _Finding:
    missing = sorted(set(range(evidence.num_ranks)) - set(evidence.finished_ranks))
    if not missing:
        return _Finding(True, f"every rank finished its training ({evidence.num_ranks})")
    which = ", ".join(map(str, missing))
    return _Finding(False, f"the completion record of rank {which} is missing ({evidence.num_ranks} trained it)")


def _no_worse(what: str, measured: Measured | None, whose: str, max_loss: float, unit: str = POSITIONS) -> _Finding:
    difference = _usable(measured)
    if difference is None:
        return _Finding(False, f"its {what} was not compared with {whose}")
    told = _told(what, whose, difference, unit)
    if difference.low is None:
        return _Finding(False, f"{told}, without an interval to judge by")
    passed = difference.low >= -max_loss
    return _Finding(passed, f"{told}: a loss of more than {max_loss:g} is {'' if passed else 'not '}ruled out")


def _baselines(evidence: Evidence, rules: GateConfig) -> Iterator[_Finding]:
    measured = {name: m for name, found in evidence.over_baselines.items() if (m := _usable(found)) is not None}
    others = {name: difference for name, difference in measured.items() if name != POPULARITY}
    for name in dict.fromkeys((POPULARITY, *evidence.expected_baselines)):
        rule = rules.beats_popularity if name == POPULARITY else rules.beats_best_baseline
        if rule != NOT_AT_ALL and name not in measured:
            only_warned = rules.missing_baseline == "warn"
            said = f"the baseline {name} was not measured{' (warning)' if only_warned else ''}"
            yield _Finding(only_warned, said, is_final=name not in evidence.expected_baselines)
    if rules.beats_popularity != NOT_AT_ALL and POPULARITY in measured:
        yield _better(evidence.metric, f"that of {POPULARITY}", measured[POPULARITY], rules.beats_popularity)
    if rules.beats_best_baseline != NOT_AT_ALL and others:
        # The best baseline is the one over which the model's lead is smallest.
        best = min(others, key=lambda name: (others[name].value, name))
        whose = f"that of {best}, the best baseline,"
        yield _better(evidence.metric, whose, others[best], rules.beats_best_baseline)


def _outcome(evidence: Evidence, outcome: MeasuredOutcome, rules: GateConfig) -> Iterator[_Finding]:
    """It is no final word where an outcome could not be judged: its window may be open still. Then next items decide, where there are any."""
    only_warned = evidence.foretells_items or rules.missing_baseline == "warn"
    if evidence.champion_id is not None and outcome.champion_foretells_it:
        whose = f"that of champion {evidence.champion_id}"
        if _usable(outcome.over_champion) is None:
            said = f"its {outcome.measure} could not be compared with {whose}{' (warning)' if only_warned else ''}"
            yield _Finding(only_warned, said, is_final=False)
        else:
            yield _no_worse(outcome.measure, outcome.over_champion, whose, rules.max_outcome_loss, MOMENTS)
    if not evidence.foretells_items and rules.beats_best_baseline != NOT_AT_ALL:
        over_regression = _usable(outcome.over_regression)
        if over_regression is None:
            said = (
                f"its {outcome.measure} could not be compared with a regression's{' (warning)' if only_warned else ''}"
            )
            yield _Finding(only_warned, said, is_final=False)
        else:
            yield _better(outcome.measure, "a regression's", over_regression, rules.beats_best_baseline, MOMENTS)


def _better(what: str, whose: str, difference: Measured, rule: str, unit: str = POSITIONS) -> _Finding:
    told = _told(what, whose, difference, unit)
    if rule == BY_INTERVAL and difference.low is None:
        return _Finding(False, f"{told}, without an interval to judge by")
    passed = (difference.low if rule == BY_INTERVAL else difference.value) > 0  # type: ignore[operator]
    verdict = "it is better" if passed else "it is not shown to be better"
    return _Finding(passed, f"{told}: {verdict}")


def _usable(measured: Measured | None) -> Measured | None:
    """None for what is no number: a metric over no position."""
    if measured is None:
        return None
    ends = (measured.value, *(end for end in (measured.low, measured.high) if end is not None))
    return measured if all(map(math.isfinite, ends)) else None


def _told(what: str, whose: str, difference: Measured, unit: str) -> str:
    interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"its {what} less {whose} is {difference.value:+.4f}{interval} on {difference.num_positions:,} {unit}"
