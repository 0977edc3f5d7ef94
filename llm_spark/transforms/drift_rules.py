"""From what has changed to what becomes of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_spark.config import DriftRules
from llm_spark.config.drift import NEVER, SEVERITIES
from llm_spark.transforms.drift_scene import Finding

NONE, WARM_START, RETRAIN = ACTIONS = ("none", "warm_start", "retrain")
NOTHING_JUDGED = "Nothing could be judged, so that nothing speaks for training."


@dataclass(frozen=True)
class Advice:
    """What should become of the model."""

    action: str
    """none, warm_start (train.warm_start=true) or retrain (from scratch)."""
    reason: str
    """One sentence."""
    is_withheld: bool = False
    """Whether the data look broken, so that nothing should be trained."""


def retraining_advice(findings: Sequence[Finding], rules: DriftRules) -> Advice:
    """Hold the findings against the rules: signs of broken data withhold, else the strongest action that a finding asks for is advised."""
    if broken := _meeting(findings, rules.withhold):
        reason = f"The data look broken, and training would learn the fault: {_told(broken)}; mend them first."
        return Advice(NONE, reason, is_withheld=True)
    for action, rule in ((RETRAIN, rules.retrain), (WARM_START, rules.warm_start)):
        if changed := _meeting(findings, rule):
            how = "from scratch" if action == RETRAIN else "with a warm start"
            return Advice(action, f"Train {how}: {_told(changed)}.")
    judged = [finding for finding in findings if not finding.not_judged]
    if not judged:
        return Advice(NONE, NOTHING_JUDGED)
    return Advice(NONE, f"None of the {len(judged)} measures that were judged asks for training.")


def _meeting(findings: Sequence[Finding], rule: Mapping[str, str]) -> list[Finding]:
    return [finding for finding in findings if _is_met(finding.severity, rule.get(finding.measure, NEVER))]


def _is_met(severity: str, least: str) -> bool:
    return least in SEVERITIES and severity in SEVERITIES[SEVERITIES.index(least) :]


def _told(findings: Sequence[Finding]) -> str:
    return "; ".join(f"{finding.label} ({finding.severity})" for finding in findings)
