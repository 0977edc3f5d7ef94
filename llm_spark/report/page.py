"""The page: what the sections say and show, put into the template. Everything that comes from tables is escaped there."""

from __future__ import annotations

from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from llm_spark.report.content import ERROR, WARNING, Report
from llm_spark.report.evaluated import Evaluated
from llm_spark.report.night import (
    check_views,
    drift_figures,
    num_of,
    quality_sentence,
    stage_views,
    training_figures,
)
from llm_spark.report.svg import Chart
from llm_spark.report.words import duration, interval, moment, named, number, plural, shortened


@dataclass(frozen=True)
class Card:
    """One fact at the top of the page."""

    heading: str
    fact: str
    detail: str
    look: str = "plain"
    """plain, good, warning or error."""
    place: str = ""
    """The section that tells more."""


def page(report: Report) -> str:
    """One HTML page that needs no other file. The same report gives the same text."""
    evaluated = Evaluated(report)
    advice, drift = drift_figures(report)
    calibration_said, calibration = evaluated.calibration()
    warned = [check for check in report.checks if check.severity in (WARNING, ERROR)]
    measured = [check for check in report.checks if check.severity not in (WARNING, ERROR)]
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            cards=_cards(report, evaluated, advice),
            stages=stage_views(report),
            quality=quality_sentence(report.checks),
            warnings=check_views(warned),
            measurements=check_views(measured),
            training=training_figures(report.measurements),
            evaluated=evaluated,
            metric_figures=evaluated.metric_figures(),
            differences=evaluated.difference_figures(),
            metric_tables=evaluated.metric_tables(),
            slices=evaluated.slice_figures(),
            slice_table=evaluated.slice_table(),
            calibration_said=calibration_said,
            calibration=calibration,
            outcomes=evaluated.outcomes(),
            advice=advice,
            drift=drift,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llm_spark.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": moment,
        "named": named,
        "number": number,
        "shortened": shortened,
        "percent": lambda share: f"{100 * share:.1f} %" if share >= 0.001 else "below 0.1 %",
        "drawn": _drawn,
    }
    environment.globals |= {"plural": plural}
    return environment


def _drawn(chart: Chart) -> Markup:
    """The only text that goes into the page as it is: matplotlib's drawing, in which XML escaped what came from tables."""
    return Markup(chart.svg)


def _cards(report: Report, evaluated: Evaluated, advice: str) -> list[Card]:
    cards = []
    if report.runs:
        unfinished = [run.stage for run in report.runs if run.seconds is None]
        seconds = sum(run.seconds or 0.0 for run in report.runs)
        detail = f"did not finish: {', '.join(unfinished)}" if unfinished else f"{duration(seconds)} in all"
        cards.append(
            Card("Stages", plural(len(report.runs), "stage"), detail, "error" if unfinished else "good", "night")
        )
    if report.checks:
        errors, warnings = num_of(report.checks, ERROR), num_of(report.checks, WARNING)
        look = "error" if errors else "warning" if warnings else "good"
        fact = (
            ", ".join([plural(errors, "error")] * bool(errors) + [plural(warnings, "warning")] * bool(warnings))
            or "no warning"
        )
        cards.append(Card("Data quality", fact, f"among {plural(len(report.checks), 'check')}", look, "quality"))
    model = next((model for model in report.models if model.model_id == report.model_id), None)
    if model is not None:
        look = {"champion": "good", "challenger": "plain"}.get(model.alias, "warning")
        cards.append(Card("Model", model.alias, f"{model.model_id}: {shortened(model.reason, 140)}", look, "registry"))
    figure = evaluated.get(evaluated.metric) if evaluated.metric else None
    if figure is not None:
        detail = (
            f"95 % interval {number(figure.low)} to {number(figure.high)}, {plural(figure.num_examples, 'position')}"
        )
        if figure.low is None:
            detail = f"without an interval, {plural(figure.num_examples, 'position')}"
        cards.append(Card(named(evaluated.metric), number(figure.value), detail, "plain", "metrics"))
        if evaluated.rival is not None:
            apart = evaluated.get(evaluated.metric, against=evaluated.rival)
            if apart is not None:
                whom = evaluated.label(evaluated.rival)
                ahead = apart.low is not None and apart.low > 0
                behind = apart.high is not None and apart.high < 0
                look = "good" if ahead else "warning" if behind else "plain"
                detail = f"{named(evaluated.metric)}{interval(apart.low, apart.high)}"
                cards.append(Card(f"Against {whom}", number(apart.value, signed=True), detail.strip(), look, "metrics"))
    if advice:
        action, _, reason = advice.partition(". ")
        cards.append(
            Card("Drift advises", action, shortened(reason, 140), "good" if action == "none" else "warning", "drift")
        )
    return cards
