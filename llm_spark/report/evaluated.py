"""The sections on the evaluated model: metrics beside champion and baselines, slices, calibration, outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_spark.report.charts import Dot, dot_plot, reliability_plot, tenths_plot, trade_off_plot
from llm_spark.report.content import Estimate, Report
from llm_spark.report.svg import BASELINE, MODEL, OTHER, Chart
from llm_spark.report.words import METRICS, SLICES, interval, named, number

EVALUATED, CHAMPION, REGRESSION = "model", "champion", "rfm_regression"
ALL = "all"
_NOT_RANKED = re.compile(r"calibration_error|.*\..*")
_OUTCOME_MEASURES = ("auc", "average_precision", "brier", "squared_error_log", "mean_error_log")
_OUTCOMES = {
    "auc": "AUC: the chance that a moment it came about after was thought likelier than one it did not; .5 is guessing",
    "average_precision": "average precision: mean precision over all places at which it came about; guessing gives the base rate",
    "brier": "Brier score: mean squared error of the probability; lower is better",
    "squared_error_log": "mean squared error of log(1 + amount); lower is better",
    "mean_error_log": "mean error of log(1 + amount); 0 is even",
}

Key = tuple[str, str | None, str, str]


@dataclass(frozen=True)
class Figure:
    """A picture with its heading and a sentence on how to read it."""

    heading: str
    note: str
    chart: Chart


@dataclass(frozen=True)
class Grid:
    """A table of figures: a heading of columns, and rows of cells that are texts."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Evaluated:
    """The rows of `evaluation` of one model, found by whose and what they are."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.by_key: dict[Key, Estimate] = {(e.recommender, e.against, e.slice, e.name): e for e in report.estimates}
        self.k = max((int(k) for e in report.estimates if (k := e.name.partition("@")[2]).isdigit()), default=0)
        self.names = [
            name for name in dict.fromkeys(e.name for e in self._of(ALL, None)) if not _NOT_RANKED.match(name)
        ]
        self.names.sort(key=_place)
        fallback = f"recall@{self.k}"
        self.metric = (
            report.metric
            if report.metric in self.names
            else fallback
            if fallback in self.names
            else "".join(self.names[:1])
        )
        self.recommenders = self._ordered()
        rivals = [name for name in self.recommenders if name != EVALUATED]
        self.rival = CHAMPION if CHAMPION in rivals else rivals[0] if rivals else None
        """Whom slices are compared with: the champion, or the best baseline."""

    def get(
        self, name: str, slice_name: str = ALL, recommender: str = EVALUATED, against: str | None = None
    ) -> Estimate | None:
        return self.by_key.get((recommender, against, slice_name, name))

    def label(self, recommender: str) -> str:
        return {EVALUATED: "this model", REGRESSION: "RFM regression"}.get(recommender, named(recommender))

    def metric_figures(self) -> list[Figure]:
        """A dot plot of each metric at the longest list, the deciding one first."""
        shown = [name for name in self.names if "@" not in name or name.endswith(f"@{self.k}")]
        shown.sort(key=lambda name: name != self.metric)
        return [
            Figure(named(name), _meaning(name), dot_plot(named(name), dots))
            for name in shown
            if (dots := self._dots((r, self.get(name, recommender=r)) for r in self.recommenders))
        ]

    def difference_figures(self) -> list[Figure]:
        """This model less the champion in every metric that the gate could decide by, then in each of these less the baselines."""
        ranked = [name for name in self.names if re.match(rf"(recall|mrr|ndcg)@{self.k}$", name)]
        names = sorted({*ranked, self.metric} - {""}, key=lambda name: (name != self.metric, _place(name)))
        over_champion = self._dots((CHAMPION, self.get(name, against=CHAMPION)) for name in names)
        figures = []
        if over_champion:
            measured = [name for name in names if self.get(name, against=CHAMPION)]
            dots = [replace(dot, label=named(name)) for name, dot in zip(measured, over_champion, strict=True)]
            figures.append(_difference("This model less the champion", dots))
        for name in names:
            baselines = (r for r in self.recommenders if r not in (EVALUATED, CHAMPION))
            if dots := self._dots((r, self.get(name, against=r)) for r in baselines):
                figures.append(_difference(f"{named(name)}: this model less …", dots))
        return figures

    def metric_tables(self) -> list[Grid]:
        """Every metric of every recommender, then this model's less each other's; one row a metric."""
        values = [
            [named(name), *(_cell(self.get(name, recommender=recommender)) for recommender in self.recommenders)]
            for name in self.names
        ]
        others = [r for r in self.recommenders if any(self.get(name, against=r) for name in self.names)]
        apart = [[named(name), *(_cell(self.get(name, against=r), signed=True) for r in others)] for name in self.names]
        tables = [
            Grid("Over all test positions", ["", *map(self.label, self.recommenders)], values),
            Grid("This model less …", ["", *map(self.label, others)], apart),
        ]
        return [table for table in tables if any(any(row[1:]) for row in table.rows)]

    def slice_figures(self) -> list[Figure]:
        """The deciding metric in each group of slices, beside the champion or the best baseline."""
        figures = []
        for question, slices in self._slice_groups().items():
            dots: list[Dot] = []
            beside: list[Dot | None] = []
            for slice_name, label in slices.items():
                mine = self.get(self.metric, slice_name)
                if mine is not None:
                    other = self.get(self.metric, slice_name, self.rival) if self.rival else None
                    dots.append(_dot(label, mine, MODEL))
                    beside.append(_dot(f"{self.label(other.recommender)}, {label},", other, OTHER) if other else None)
            if dots:
                picture = dot_plot(f"{named(self.metric)} by {question[0].lower()}{question[1:]}", dots, beside=beside)
                note = f"Round: this model. Diamond: {self.label(self.rival)}." if self.rival else ""
                figures.append(Figure(question, note, picture))
        return figures

    def slice_table(self) -> Grid | None:
        shown = [r for r in (EVALUATED, self.rival) if r]
        rows = []
        for question, slices in self._slice_groups().items():
            for slice_name, label in slices.items():
                found = [self.get(self.metric, slice_name, r) for r in shown]
                if any(found):
                    num = next(e.num_examples for e in found if e)
                    rows.append([question, label, f"{num:,}", *map(_cell, found)])
        columns = ["question", "slice", "positions", *map(self.label, shown)]
        return Grid(f"{named(self.metric)} by slice", columns, rows) if rows else None

    def calibration(self) -> tuple[str, list[Figure]]:
        """A sentence, and the reliability and abstention plots."""
        error = self.get("calibration_error")
        said = ""
        if error is not None:
            said = f"Probabilities are off by {number(error.value)}{interval(error.low, error.high)} on average (expected calibration error)."
        points = []
        for tenth in range(1, 11):
            confidence, accuracy = (
                self.get("confidence", f"confidence_{tenth}"),
                self.get("accuracy", f"confidence_{tenth}"),
            )
            if confidence is not None and accuracy is not None:
                points.append((confidence.value, _dot(f"{accuracy.num_examples:,} positions", accuracy, MODEL)))
        figures = []
        if points:
            chart = reliability_plot("Calibration: accuracy by confidence", points, said)
            note = "On the dashed line the model is as sure as it is right. Each dot is a bin of probabilities."
            figures.append(Figure("Is it as sure as it is right?", note, chart))
        trades = self._trades()
        if trades:
            note = "Left unanswered is what the model is least sure of; the numbers are the least probability that is answered."
            figures.append(
                Figure(
                    "What if it only speaks when sure?",
                    note,
                    trade_off_plot("Accuracy where only sure predictions are given", trades),
                )
            )
        return said, figures

    def outcomes(self) -> list[tuple[str, Grid, list[Figure]]]:
        """For each outcome that the model foretells: its measures beside the regression's and the champion's, and lift and gain by tenth."""
        found = []
        for outcome in dict.fromkeys(_outcome_of(e) for e in self.report.estimates if "." in e.name):
            who = [
                r
                for r in (EVALUATED, REGRESSION, CHAMPION)
                if any(e.recommender == r and _outcome_of(e) == outcome for e in self.report.estimates)
            ]
            measures = [m for m in _OUTCOME_MEASURES if any(self.get(f"{outcome}.{m}", recommender=r) for r in who)]
            rows = [
                [
                    _OUTCOMES[m],
                    *(_cell(self.get(f"{outcome}.{m}", recommender=r)) for r in who),
                    *(_cell(self.get(f"{outcome}.{m}", against=r), signed=True) for r in who if r != EVALUATED),
                ]
                for m in measures
            ]
            columns = ["measure", *map(self.label, who), *(f"less {self.label(r)}" for r in who if r != EVALUATED)]
            grid = Grid(f"{outcome}: measures with 95 % intervals", columns, rows)
            found.append((outcome, grid, self._tenths(outcome, who)))
        return found

    def _tenths(self, outcome: str, who: Sequence[str]) -> list[Figure]:
        figures = []
        for name, heading, note, chance in (
            (
                "lift",
                "Lift by tenth",
                "How many times as often it came about in that tenth as in all; 1 is chance.",
                [1.0] * 10,
            ),
            (
                "gain",
                "Gain by tenth",
                "Share of all that came about that is in the likeliest tenths together.",
                [n / 10 for n in range(1, 11)],
            ),
        ):
            lines = []
            for recommender, look in zip(who, (MODEL, OTHER), strict=False):
                estimates = [
                    self.get(f"{outcome}.{name}", f"outcome_decile_{tenth}", recommender) for tenth in range(1, 11)
                ]
                if all(estimates):
                    dots = [_dot(str(tenth), e, look) for tenth, e in enumerate(estimates, 1) if e]
                    lines.append((self.label(recommender), look, dots))
            if lines:
                title = f"{outcome}: {heading.lower()}"
                figures.append(
                    Figure(
                        heading,
                        note,
                        tenths_plot(title, lines, "tenth of the moments, the likeliest first", chance, note),
                    )
                )
        return figures

    def _trades(self) -> list[tuple[str, float, Dot]]:
        trades: list[tuple[float, float, Estimate]] = []
        for estimate in self.report.estimates:
            start, _, threshold = estimate.slice.partition("confidence_at_least_")
            if (
                start == ""
                and threshold
                and estimate.recommender == EVALUATED
                and estimate.against is None
                and estimate.name == "answered"
            ):
                accuracy = self.get("accuracy", estimate.slice)
                if accuracy is not None:
                    trades.append((float(threshold), estimate.value, accuracy))
        return [
            (f"≥ {threshold:g}", share, _dot("", accuracy, MODEL))
            for threshold, share, accuracy in sorted(trades, key=lambda t: t[:2])
        ]

    def _slice_groups(self) -> Mapping[str, Mapping[str, str]]:
        known = {name for slices in SLICES.values() for name in slices}
        others = {
            e.slice: named(e.slice)
            for e in self.report.estimates
            # Those by confidence are what the calibration is drawn from.
            if e.slice not in known
            and e.slice != ALL
            and e.name == self.metric
            and not e.slice.startswith("confidence_")
        }
        return {**SLICES, **({"Other slices": others} if others else {})}

    def _of(self, slice_name: str, against: str | None) -> Iterable[Estimate]:
        return (e for e in self.report.estimates if (e.slice, e.against) == (slice_name, against))

    def _ordered(self) -> list[str]:
        """This model, the champion, then the baselines, the best by the deciding metric first."""
        names = dict.fromkeys(e.recommender for e in self._of(ALL, None) if e.name in self.names)

        def place(name: str) -> tuple[Any, ...]:
            found = self.get(self.metric, recommender=name)
            return (name != EVALUATED, name != CHAMPION, -found.value if found else 0.0, name)

        return sorted(names, key=place)

    def _dots(self, found: Iterable[tuple[str, Estimate | None]]) -> list[Dot]:
        looks = {EVALUATED: MODEL, CHAMPION: OTHER}
        return [_dot(self.label(name), e, looks.get(name, BASELINE)) for name, e in found if e is not None]


def _outcome_of(estimate: Estimate) -> str:
    """Names of outcomes may hold dots themselves."""
    return estimate.name.rpartition(".")[0]


def _difference(heading: str, dots: Sequence[Dot]) -> Figure:
    return Figure(heading, "", dot_plot(heading, dots, "worse ← this model → better", is_difference=True))


def _dot(label: str, estimate: Estimate, look: str) -> Dot:
    return Dot(label, estimate.value, estimate.low, estimate.high, look)


def _cell(estimate: Estimate | None, signed: bool = False) -> str:
    return "" if estimate is None else number(estimate.value, signed) + interval(estimate.low, estimate.high)


def _meaning(name: str) -> str:
    said = METRICS.get(name.partition("@")[0], "")
    return said[:1].upper() + said[1:] + "." if said else ""


def _place(name: str) -> tuple[int, int, str]:
    head, _, k = name.partition("@")
    order = list(METRICS)
    return (order.index(head) if head in order else len(order), int(k) if k.isdigit() else 0, name)
