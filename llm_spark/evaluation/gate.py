"""Whether a newly trained model may take the champion's place: a pure decision on what was measured, with its reasons in sentences.

Against the champion it is a test of non-inferiority. With d the challenger's metric less the champion's on the same positions, the hypothesis
to be rejected is that the challenger loses more than the margin, d < -max_loss. So it is the *lower* end of d's interval that must not lie
below -max_loss; at 95 %, two-sided, a model that is worse than that passes in 2.5 of 100 nights at most. To ask it of the upper end would
let through whatever is not proven worse, and with few positions nothing can be proven: the smaller the test, the worse the model that
passes. (Wellek 2010, Testing Statistical Hypotheses of Equivalence and Noninferiority, chapter 2.)

Against a baseline it is a test of superiority: the lower end, or by setting the difference itself, must lie above 0.

Outcomes are guarded likewise: where both foretell the same ones, no more may be lost of any. A model that foretells outcomes alone is judged
by them alone, and must beat in each the regression that a marketer would fit.

A champion that cannot score any more protects nobody, so the challenger is judged by all else. One that can score and could not be compared
with is what users have, and goes on scoring until a person decides.
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

_BASELINE = (
    "`llm-spark evaluate` tries a missing baseline again, and gate.missing_baseline=warn lets a model pass without"
)
_REGRESSION = "`llm-spark evaluate` tries a regression that failed again"
_OUTCOME = "an outcome that could not be judged needs newer sequences, with later events of more users"


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
    regression_failed: bool = False
    """By an error, so that the next evaluate tries again."""


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
    champion_cannot_score: str = ""
    """Why it cannot any more; empty where it can, and where there is none."""
    champion_not_compared: str = ""
    """Why one that can score could not be compared with; empty where it was."""
    champion_foretells_items: bool = True
    outcomes: tuple[MeasuredOutcome, ...] = ()
    same_outcomes: bool = True
    """Whether the champion foretells exactly these. Of another list the sequences hold no labels."""
    outcomes_of_champion_alone: tuple[str, ...] = ()
    """Those that it foretells and the challenger does not, as sentences name them."""


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and why: where it refused, what spoke against the model; where it promoted, what spoke for it."""

    promoted: bool
    sentences: list[str]
    waits_for: tuple[str, ...] = ()
    """Where all that speaks against it is what could not be measured, what may change that; else nothing, and the decision is final."""

    @property
    def is_final(self) -> bool:
        return not self.waits_for


@dataclass(frozen=True)
class _Finding:
    passed: bool
    sentence: str
    waits_for: str = ""


def decide(evidence: Evidence, rules: GateConfig) -> Decision:
    """Every condition is looked at, so that a refusal names all that is wrong at once."""
    findings = list(_findings(evidence, rules))
    promoted = all(finding.passed for finding in findings)
    telling = [finding for finding in findings if finding.passed == promoted]
    waits = not promoted and all(finding.waits_for for finding in telling)
    waits_for = tuple(dict.fromkeys(finding.waits_for for finding in telling)) if waits else ()
    return Decision(promoted, [finding.sentence for finding in telling], waits_for)


def _findings(evidence: Evidence, rules: GateConfig) -> Iterator[_Finding]:
    if evidence.certificate_objection:
        yield _Finding(False, evidence.certificate_objection)
    yield _ranks(evidence)
    yield from _champion(evidence, rules)
    if evidence.foretells_items:
        yield from _baselines(evidence, rules)
    for outcome in evidence.outcomes:
        yield from _outcome(evidence, outcome, rules)


def _champion(evidence: Evidence, rules: GateConfig) -> Iterator[_Finding]:
    champion = f"champion {evidence.champion_id}"
    if evidence.champion_id is None:
        yield _Finding(True, "there is no champion yet to compare it with")
    elif evidence.champion_cannot_score:
        yield _Finding(True, f"{champion} cannot score any more: {evidence.champion_cannot_score}")
    elif not evidence.foretells_items and evidence.champion_foretells_items:
        yield _Finding(False, f"it foretells outcomes alone, and {champion} next items too")
    elif evidence.champion_not_compared and (evidence.foretells_items or evidence.same_outcomes):
        why = evidence.champion_not_compared
        yield _Finding(
            False, f"it could not be compared with {champion}: {why}; promote it by hand if it is the better one"
        )
    else:
        if evidence.foretells_items:
            yield _no_worse(evidence.metric, evidence.over_champion, f"that of {champion}", rules.max_loss)
        if not evidence.same_outcomes:
            alone = ", ".join(evidence.outcomes_of_champion_alone)
            said = f"{champion} foretells another list of outcomes, so that they are not compared"
            yield _Finding(True, f"{said}{f'; it alone foretells {alone}' if alone else ''} (warning)")


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
            yield _Finding(only_warned, said, _BASELINE if name in evidence.expected_baselines else "")
    if rules.beats_popularity != NOT_AT_ALL and POPULARITY in measured:
        yield _better(evidence.metric, f"that of {POPULARITY}", measured[POPULARITY], rules.beats_popularity)
    if rules.beats_best_baseline != NOT_AT_ALL and others:
        # The best baseline is the one over which the model's lead is smallest.
        best = min(others, key=lambda name: (others[name].value, name))
        whose = f"that of {best}, the best baseline,"
        yield _better(evidence.metric, whose, others[best], rules.beats_best_baseline)


def _outcome(evidence: Evidence, outcome: MeasuredOutcome, rules: GateConfig) -> Iterator[_Finding]:
    """It is no final word where an outcome could not be judged: its window may be open still. Then next items decide, where there are any."""
    if _is_held_against_champion(evidence):
        whose = f"that of champion {evidence.champion_id}"
        if _has_interval(outcome.over_champion):
            yield _no_worse(outcome.measure, outcome.over_champion, whose, rules.max_outcome_loss, MOMENTS)
        else:
            warned = " (warning)" if evidence.foretells_items else ""
            yield _Finding(
                evidence.foretells_items, _unjudged(outcome, outcome.over_champion, whose) + warned, _OUTCOME
            )
    if not evidence.foretells_items and rules.beats_best_baseline != NOT_AT_ALL:
        over, whose = outcome.over_regression, "a regression's"
        if over is not None and _has_interval(over):
            yield _better(outcome.measure, whose, over, rules.beats_best_baseline, MOMENTS)
        else:
            waits_for = _REGRESSION if outcome.regression_failed else _OUTCOME
            yield _Finding(False, _unjudged(outcome, over, whose), waits_for)


def _is_held_against_champion(evidence: Evidence) -> bool:
    is_there = evidence.champion_id is not None and not evidence.champion_cannot_score
    return is_there and not evidence.champion_not_compared and evidence.same_outcomes


def _has_interval(difference: Measured | None) -> bool:
    usable = _usable(difference)
    return usable is not None and usable.low is not None


def _unjudged(outcome: MeasuredOutcome, difference: Measured | None, whose: str) -> str:
    of_one = "" if _usable(difference) is None else ", for all its moments are of one user"
    return f"its {outcome.measure} could not be compared with {whose}{of_one}"


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
