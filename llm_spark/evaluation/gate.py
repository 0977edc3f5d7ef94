"""Whether a newly trained model may take the champion's place: a pure decision on what was measured, with its reasons in sentences.

Against the champion it is a test of non-inferiority. With d the challenger's metric less the champion's on the same positions, the hypothesis
to be rejected is that the challenger loses more than the margin, d < -max_loss. So it is the *lower* end of d's interval that must not lie
below -max_loss; at 95 %, two-sided, a model that is worse than that passes in 2.5 of 100 nights at most. To ask it of the upper end would
let through whatever is not proven worse, and with few positions nothing can be proven: the smaller the test, the worse the model that
passes. (Wellek 2010, Testing Statistical Hypotheses of Equivalence and Noninferiority, chapter 2.)

Against a baseline it is a test of superiority: the lower end, or by setting the difference itself, must lie above 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llm_spark.config import GateConfig
from llm_spark.config.gate import BY_INTERVAL, NOT_AT_ALL

POPULARITY = "popularity"


@dataclass(frozen=True)
class Measured:
    """A metric, or a difference of two on the same positions, with its 95 % interval; None where there can be none (one user)."""

    value: float
    low: float | None
    high: float | None
    num_positions: int


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
    else:
        yield _no_worse(evidence, rules.max_loss)
    yield from _baselines(evidence, rules)


def _ranks(evidence: Evidence) -> _Finding:
    missing = sorted(set(range(evidence.num_ranks)) - set(evidence.finished_ranks))
    if not missing:
        return _Finding(True, f"every rank finished its training ({evidence.num_ranks})")
    which = ", ".join(map(str, missing))
    return _Finding(False, f"the completion record of rank {which} is missing ({evidence.num_ranks} trained it)")


def _no_worse(evidence: Evidence, max_loss: float) -> _Finding:
    whom = f"champion {evidence.champion_id}"
    difference = _usable(evidence.over_champion)
    if difference is None:
        return _Finding(False, f"its {evidence.metric} was not compared with that of {whom}")
    told = _told(evidence.metric, whom, difference)
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
        yield _better(evidence.metric, POPULARITY, measured[POPULARITY], rules.beats_popularity)
    if rules.beats_best_baseline != NOT_AT_ALL and others:
        # The best baseline is the one over which the model's lead is smallest.
        best = min(others, key=lambda name: (others[name].value, name))
        yield _better(evidence.metric, f"{best}, the best baseline,", others[best], rules.beats_best_baseline)


def _better(metric: str, whom: str, difference: Measured, rule: str) -> _Finding:
    told = _told(metric, whom, difference)
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


def _told(metric: str, whom: str, difference: Measured) -> str:
    interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"its {metric} less that of {whom} is {difference.value:+.4f}{interval} on {difference.num_positions:,} positions"
