"""The sections on the night itself: stages, checks, training, drift, the registry, users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from llm_spark.report.charts import Level, Line, history_plot, level_plot, line_plot
from llm_spark.report.content import ERROR, SEVERITIES, WARNING, Check, Measurement, Report, StageRun
from llm_spark.report.evaluated import Figure
from llm_spark.report.svg import BASELINE, MODEL, OTHER
from llm_spark.report.words import blocks, counts, duration, moment, named, number, plural

DRIFT = "drift"
ADVICE = "retraining_advice"
_NOT_MEASURES = (ADVICE, "drift_inputs", "not_judged")
_MAX_REMARKS = 60
_MIN_NIGHTS = 3
"""Fewer make no history."""


@dataclass(frozen=True)
class StageView:
    """One row of the night's account."""

    stage: str
    began: str
    took: str
    is_finished: bool
    earlier: str
    """How many days before the newest run it began; empty within a day."""
    came_in: Sequence[str]
    went_out: Sequence[str]
    rejected: Sequence[str]
    remarks: Sequence[tuple[bool, Sequence[str]]]
    """(whether these lines are a table set in columns, lines)."""
    num_remarks: int


def stage_views(report: Report) -> list[StageView]:
    newest = max((run.started_at for run in report.runs), default=None)
    return [
        StageView(
            stage=run.stage,
            began=moment(run.started_at),
            took=duration(run.seconds),
            is_finished=run.seconds is not None,
            earlier=_earlier((newest or run.started_at) - run.started_at),
            came_in=counts(run.rows_in),
            went_out=counts(run.rows_out),
            rejected=_by_number(run.rejected),
            remarks=list(blocks(_bounded(run))),
            num_remarks=len(run.remarks),
        )
        for run in report.runs
    ]


def _bounded(run: StageRun) -> list[str]:
    remarks = list(run.remarks[:_MAX_REMARKS])
    left = len(run.remarks) - len(remarks)
    return [*remarks, f"and {plural(left, 'remark')} more in the table runs"] if left else remarks


def _earlier(before: timedelta) -> str:
    return f"{plural(before.days, 'day')} earlier" if before.days else ""


def _by_number(rejected: Mapping[str, int]) -> list[str]:
    return counts(
        dict(sorted(((reason, n) for reason, n in rejected.items() if n), key=lambda pair: (-pair[1], pair[0])))
    )


@dataclass(frozen=True)
class CheckView:
    """One check as a row of the page."""

    severity: str
    stage: str
    name: str
    subject: str
    value: str
    limit: str
    detail: str


def check_views(checks: Sequence[Check]) -> list[CheckView]:
    """Errors first, then warnings, then measurements; within them as they came."""
    order = {severity: place for place, severity in enumerate(reversed(SEVERITIES))}
    return [
        CheckView(
            check.severity,
            check.stage,
            check.name.replace("_", " "),
            check.subject,
            number(check.value),
            "" if check.limit is None else number(check.limit),
            check.detail,
        )
        for check in sorted(checks, key=lambda check: order.get(check.severity, len(order)))
    ]


def training_figures(measurements: Sequence[Measurement]) -> list[Figure]:
    """The losses together, then every other measurement of its own."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    for found in sorted(measurements, key=lambda m: (m.name, m.step)):
        by_name.setdefault(found.name, []).append((float(found.step), found.value))
    # What was measured once only makes no curve.
    losses = [name for name in by_name if name.endswith("loss") and "outcome" not in name]
    losses.sort(key=lambda name: (len(by_name[name]) <= 1, -len(by_name[name]), name))
    figures = []
    if losses:
        looks = {"train_loss": BASELINE, "epoch_loss": MODEL, "validation_loss": OTHER}
        lines = [
            Line(
                _short(name),
                by_name[name],
                looks.get(name, BASELINE),
                is_faint=name == "train_loss" and len(losses) > 1,
            )
            for name in losses
        ]
        note = "Grey: each step; blue: the mean of each epoch; orange: on validation, which decides what is kept."
        figures.append(Figure("Loss", note, line_plot("Loss in training", lines, "step")))
    for name in sorted(set(by_name) - set(losses), key=lambda name: (not name.startswith("validation"), name)):
        heading = named(_short(name))
        from_zero = name.startswith(("validation_recall", "tokens"))
        chart = line_plot(heading, [Line(number(by_name[name][-1][1]), by_name[name])], "step", from_zero)
        figures.append(Figure(heading[:1].upper() + heading[1:], "", chart))
    return figures


def _short(name: str) -> str:
    return name.replace("_at_", "@").replace("train_loss", "steps").replace("_loss", "").replace("_", " ")


def drift_figures(report: Report) -> tuple[str, list[Figure]]:
    """The advice in a sentence; the newest window against its limits, and each measure over the nights."""
    rows = [check for check in report.checks if check.stage == DRIFT]
    advice = next((f"{check.subject.replace('_', ' ')}. {check.detail}" for check in rows if check.name == ADVICE), "")
    measured = [check for check in rows if check.name not in _NOT_MEASURES and check.value is not None]
    measured.sort(key=lambda check: (-_severity(check), check.limit is None, check.name))
    figures = []
    if measured:
        windows = list(dict.fromkeys(check.subject for check in measured))
        note = f"{', '.join(windows[:2])}. Each row has a scale of its own: the dot is the value, the bar the limit that is nearer to it."
        chart = level_plot("Drift: each measure beside its limit", [_level(check) for check in measured])
        figures.append(Figure("Against earlier windows", note, chart))
    by_name: dict[str, dict[str, Check]] = {}
    for check in report.drift_history:
        if check.name not in _NOT_MEASURES and check.value is not None:
            # Of two judgements on one window the later counts.
            by_name.setdefault(check.name, {})[check.subject] = check
    for name, of_windows in sorted(by_name.items()):
        nights = sorted(of_windows.items())
        if len(nights) >= _MIN_NIGHTS:
            levels = [(window, _level(check)) for window, check in nights]
            figures.append(
                Figure(name.replace("_", " "), "", history_plot(f"{name.replace('_', ' ')} night after night", levels))
            )
    return advice, figures


def _level(check: Check) -> Level:
    assert check.value is not None
    return Level(check.name.replace("_", " "), check.value, check.limit, check.severity)


def _severity(check: Check) -> int:
    return SEVERITIES.index(check.severity) if check.severity in SEVERITIES else 0


def num_of(checks: Sequence[Check], severity: str) -> int:
    return sum(check.severity == severity for check in checks)


def quality_sentence(checks: Sequence[Check]) -> str:
    errors, warnings = num_of(checks, ERROR), num_of(checks, WARNING)
    if not errors and not warnings:
        return f"No warning among {plural(len(checks), 'check')}."
    return f"{plural(errors, 'error')} and {plural(warnings, 'warning')} among {plural(len(checks), 'check')}."
