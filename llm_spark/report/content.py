"""What a report is made of: rows of the tables as plain values. Times are UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

INFO, WARNING, ERROR = SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class StageRun:
    """The newest run of a stage, from `runs`, or from `data_quality` where it measured something and then refused to go on."""

    stage: str
    run_id: str
    started_at: datetime
    seconds: float | None
    """None where it did not finish."""
    rows_in: Mapping[str, int] = field(default_factory=dict)
    rows_out: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Check:
    """One row of `data_quality`."""

    stage: str
    name: str
    subject: str
    value: float | None
    limit: float | None
    severity: str
    detail: str
    measured_at: datetime


@dataclass(frozen=True)
class Measurement:
    """One point of a training curve: of `training_metrics`, or the mean of several that follow each other."""

    step: int
    name: str
    value: float


@dataclass(frozen=True)
class Estimate:
    """One row of `evaluation`."""

    recommender: str
    against: str | None
    """Whose figure was subtracted; None for the figure itself."""
    slice: str
    name: str
    value: float
    low: float | None
    """Lower end of the 95 % interval; None where there can be none."""
    high: float | None
    num_examples: int


@dataclass(frozen=True)
class Model:
    """One row of `models`."""

    model_id: str
    alias: str
    since: datetime | None
    trained_at: datetime | None
    reason: str
    code_version: str = ""
    has_artifact: bool = True


@dataclass(frozen=True)
class Reason:
    """A past item, and what it added to a prediction's score."""

    item_id: str
    weight: float


@dataclass(frozen=True)
class Prediction:
    """One row of `predictions`."""

    rank: int
    item_id: str
    probability: float
    reasons: Sequence[Reason] = ()
    memory_weight: float | None = None


@dataclass(frozen=True)
class User:
    """One user with what is foretold, best first."""

    user_id: str
    as_of: date
    model_id: str
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class Report:
    """All that the page shows. What is empty is said in a sentence."""

    runs: Sequence[StageRun]
    """In the order of the stages."""
    checks: Sequence[Check] = ()
    """Of these runs: errors, then warnings, then measurements."""
    num_checks_left_out: int = 0
    drift_history: Sequence[Check] = ()
    """Measures of drift, of this and earlier nights, the oldest first."""
    model_id: str | None = None
    """The evaluated model, or the newest where none was."""
    champion_id: str | None = None
    """The champion beside which it was evaluated."""
    metric: str = ""
    """The metric that the gate decides by."""
    measurements: Sequence[Measurement] = ()
    estimates: Sequence[Estimate] = ()
    models: Sequence[Model] = ()
    """Champion and challenger first, then the newest."""
    num_models: int = 0
    """In the registry; more than are shown, perhaps."""
    users: Sequence[User] = ()
    num_users_asked: int = 0
    """Of the setting report.num_users."""

    @property
    def date(self) -> date | None:
        """The UTC day on which the newest run began, or the newest model came to be; None without either."""
        times = [run.started_at for run in self.runs] + [m.since for m in self.models if m.since is not None]
        return max(times).date() if times else None
