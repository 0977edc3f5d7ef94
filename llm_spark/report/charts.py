"""The kinds of picture that the page has. Each takes plain numbers and says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from llm_spark.report.svg import BAD, BASELINE, GRID, INK, MODEL, MUTED, PAGE, WARN, WIDTH, Chart, Margins, chart
from llm_spark.report.words import interval, number, shortened

_ROW = 23.0
_LABELS, _VALUES = 120.0, 56.0
_DOTS_WIDTH = WIDTH - _LABELS - _VALUES
"""Pixels of a dot plot's axes, between its labels and its values."""
_LOOK = {"info": (MODEL, "o"), "warning": (WARN, "^"), "error": (BAD, "s")}
"""Colour and shape of a severity: who does not tell the colours apart tells the shapes."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in a row of a dot plot."""

    label: str
    value: float
    low: float | None
    high: float | None
    look: str = BASELINE
    """A placeholder colour of `svg`."""

    @property
    def ends(self) -> tuple[float, float]:
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)

    @property
    def text(self) -> str:
        return f"{self.label} {number(self.value)}{interval(self.low, self.high)}"


@dataclass(frozen=True)
class Line:
    """Points joined by a line."""

    label: str
    points: Sequence[tuple[float, float]]
    look: str = MODEL
    is_faint: bool = False


def dot_plot(
    title: str,
    dots: Sequence[Dot],
    axis: str = "",
    is_difference: bool = False,
    beside: Sequence[Dot | None] = (),
) -> Chart:
    """One row a dot, the first on top; a whisker is its 95 % interval. `beside` holds for each dot another one to draw in its row. Of
    differences the zero line is what to look at."""
    height = _ROW * len(dots) + (44 if axis else 30)
    second = [dot for dot in beside if dot is not None]

    def draw(axes: Axes) -> None:
        places = np.arange(len(dots))[::-1]
        low, high = _limits([end for dot in [*dots, *second] for end in dot.ends], is_difference)
        axes.set_xlim(low, high)
        axes.set_ylim(-0.6, len(dots) - 0.4)
        axes.grid(axis="x")
        if low <= 0 <= high:
            axes.axvline(0, color=INK if is_difference else MUTED, linewidth=1.1 if is_difference else 0.9)
        apart = 0.17 if second else 0.0
        for place, dot in zip(places, dots, strict=True):
            _whisker(axes, place + apart, dot)
            said = number(dot.value, signed=is_difference)
            axes.annotate(said, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=INK)
        for place, other in zip(places, beside, strict=False):
            if other is not None:
                _whisker(axes, place - apart, other, "D")
        axes.set_yticks(places, [shortened(dot.label, 19) for dot in dots])
        _few_ticks(axes)
        axes.set_xlabel(axis)

    told = ("Differences" if is_difference else "Values") + " with 95 % intervals: "
    margins = Margins(_LABELS, _VALUES, 6, height - _ROW * len(dots) - 6)
    return chart(title, [told + "; ".join(dot.text for dot in [*dots, *second]) + "."], height, margins, draw)


def _whisker(axes: Axes, place: float, dot: Dot, shape: str = "o") -> None:
    size = 7.0 if shape == "o" else 5.5
    low, high = dot.ends
    axes.plot([low, high], [place, place], color=dot.look, linewidth=2.2, solid_capstyle="butt", clip_on=False)
    left, right = axes.get_xlim()
    if (high - low) / (right - left) * _DOTS_WIDTH > 1.5 * size:  # else the caps would lie under the dot
        for end in (low, high):
            axes.plot([end, end], [place - 0.17, place + 0.17], color=dot.look, linewidth=1.4, clip_on=False)
    (marker,) = axes.plot([dot.value], [place], shape, color=dot.look, markersize=size, clip_on=False)
    marker.set(markeredgecolor=PAGE, markeredgewidth=1.0)


def line_plot(title: str, lines: Sequence[Line], axis: str, from_zero: bool = False) -> Chart:
    """Curves with their names at their ends."""
    height, margins = 200.0, Margins(46, 92, 10, 38)

    def draw(axes: Axes) -> None:
        drawn = [line for line in lines if line.points]
        for line in drawn:
            xs, ys = zip(*line.points, strict=True)
            marker = "o" if len(xs) <= 12 else None
            look = {"linewidth": 1.0, "alpha": 0.55} if line.is_faint else {"marker": marker, "markersize": 4.5}
            axes.plot(xs, ys, color=line.look, **look)
        axes.grid(axis="y")
        last = max(x for line in drawn for x, _ in line.points)
        axes.set_xlim(0, last * 1.02 or 1)
        low, high = axes.get_ylim()
        axes.set_ylim(*((min(0.0, low), high + 0.08 * abs(high)) if from_zero else (low, high)))
        heights = _names_apart(axes, [line.points[-1][1] for line in drawn], height - margins.top - margins.bottom)
        for line, place in zip(drawn, heights, strict=True):
            said = f"{shortened(line.label, 15)}"
            axes.annotate(
                said, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=line.look
            )
        _few_ticks(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.tick_params(axis="y", labelcolor=MUTED, labelsize=10)
        axes.set_xlabel(axis)

    told = [
        f"{line.label} goes from {number(line.points[0][1])} to {number(line.points[-1][1])} at {axis} {line.points[-1][0]:,.0f}."
        for line in lines
        if line.points and not line.is_faint
    ]
    return chart(title, told, height, margins, draw)


def _names_apart(axes: Axes, values: Sequence[float], height: float, apart: float = 13.0) -> list[float]:
    """Where to write the names of lines that end at `values`, so that none lies on another: moved apart, in order, within the axes."""
    low, high = axes.get_ylim()
    per_pixel = (high - low) / height
    order = sorted(range(len(values)), key=lambda place: values[place])
    placed = dict.fromkeys(order, 0.0)
    floor = -math.inf
    for place in order:
        placed[place] = max(values[place], floor)
        floor = placed[place] + apart * per_pixel
    ceiling = high
    for place in reversed(order):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - apart * per_pixel
    return [placed[place] for place in range(len(values))]


def reliability_plot(title: str, points: Sequence[tuple[float, Dot]], said: str = "") -> Chart:
    """How often a prediction came true over how sure the model was; on the diagonal it is as sure as it may be. `points` are
    (mean confidence, accuracy)."""

    def draw(axes: Axes) -> None:
        highest = max([0.1, *(max(x, dot.ends[1]) for x, dot in points)])
        end = min(1.0, math.ceil(highest * 10.5) / 10)
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.grid()
        axes.plot([0, end], [0, end], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.text(end * 0.97, end * 0.06, "too sure", ha="right", color=MUTED, fontsize=10)
        axes.text(end * 0.03, end * 0.93, "not sure enough", color=MUTED, fontsize=10)
        for x, dot in points:
            axes.plot([x, x], dot.ends, color=MODEL, linewidth=2.0, solid_capstyle="butt")
        axes.plot(
            [x for x, _ in points],
            [dot.value for _, dot in points],
            "o",
            color=MODEL,
            markersize=7,
            markeredgecolor=PAGE,
        )
        _percent(axes)
        axes.set_xlabel("confidence: mean probability of the first item")
        axes.set_ylabel("accuracy: how often it came")

    told = [
        f"Where the model is {100 * x:.3g} % sure it is right in {100 * dot.value:.3g} %{interval(dot.low, dot.high)}."
        for x, dot in points
    ]
    return chart(title, [said, *told] if said else told, 300, Margins(50, 12, 10, 40), draw)


def trade_off_plot(title: str, points: Sequence[tuple[str, float, Dot]]) -> Chart:
    """How often the first item is right among the positions that are answered, where the least sure are left unanswered: (threshold, share
    answered, accuracy)."""

    def draw(axes: Axes) -> None:
        shares = [share for _, share, _ in points]
        axes.plot(shares, [dot.value for *_, dot in points], color=MODEL)
        for _, share, dot in points:
            axes.plot([share, share], dot.ends, color=MODEL, linewidth=2.0, solid_capstyle="butt")
        axes.plot(shares, [dot.value for *_, dot in points], "o", color=MODEL, markersize=6, markeredgecolor=PAGE)
        axes.set_xlim(0, 1.04)
        axes.set_ylim(0, min(1.05, 1.12 * max(dot.ends[1] for *_, dot in points)) or 1)
        axes.grid()
        previous = math.inf
        for threshold, share, dot in points:
            if abs(previous - share) > 0.09:
                axes.annotate(
                    threshold,
                    (share, dot.ends[0]),
                    (-3, -5),
                    textcoords="offset points",
                    ha="right",
                    va="top",
                    color=MUTED,
                    fontsize=9.5,
                )
                previous = share
        _percent(axes)
        axes.set_xlabel("positions answered")
        axes.set_ylabel("of them right")

    told = [
        f"Answering where the probability is {t}: {100 * s:.3g} % answered, {100 * d.value:.3g} % of them right."
        for t, s, d in points
    ]
    return chart(title, told, 300, Margins(50, 12, 10, 40), draw)


def tenths_plot(
    title: str, lines: Sequence[tuple[str, str, Sequence[Dot]]], axis: str, reference: Sequence[float], said: str
) -> Chart:
    """A figure of each tenth of the moments, the likeliest first, for each of (name, look, dots); `reference` is what chance gives."""
    height, margins = 240.0, Margins(46, 96, 10, 38)

    def draw(axes: Axes) -> None:
        tenths = np.arange(1, len(reference) + 1)
        axes.plot(tenths, reference, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        for place, (_, look, dots) in enumerate(lines):
            shift = 0.12 * (place - (len(lines) - 1) / 2)
            xs = np.arange(1, len(dots) + 1) + shift
            for x, dot in zip(xs, dots, strict=True):
                axes.plot([x, x], dot.ends, color=look, linewidth=1.8, solid_capstyle="butt")
            marker = "o" if place == 0 else "D"
            axes.plot(
                xs,
                [dot.value for dot in dots],
                marker=marker,
                markersize=5 if place else 6,
                color=look,
                markeredgecolor=PAGE,
            )
        axes.set_xticks(tenths)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        named = [(name, look, dots[-1].value) for name, look, dots in lines] + [("chance", MUTED, reference[-1])]
        heights = _names_apart(axes, [value for *_, value in named], height - margins.top - margins.bottom)
        for (name, look, _), at in zip(named, heights, strict=True):
            axes.annotate(
                shortened(name, 15),
                (1, at),
                (4, 0),
                ("axes fraction", "data"),
                "offset points",
                va="center",
                color=look,
            )
        axes.tick_params(axis="y", labelcolor=MUTED, labelsize=10)
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.set_xlabel(axis)

    told = [
        f"{name}: " + ", ".join(f"{n} {number(dot.value)}" for n, dot in enumerate(dots, 1)) + "."
        for name, _, dots in lines
    ]
    return chart(title, [said, *told], height, margins, draw)


@dataclass(frozen=True)
class Level:
    """A measure beside the limit that it is held against."""

    label: str
    value: float
    limit: float | None
    severity: str


def level_plot(title: str, levels: Sequence[Level]) -> Chart:
    """One row a measure, each on a scale of its own, for they have different units: the dot is the value, the bar its limit."""
    row = 40.0
    height = row * len(levels) + 6

    def draw(axes: Axes) -> None:
        axes.set_xlim(0, 1)
        axes.set_ylim(len(levels), 0)
        axes.axis("off")
        for place, level in enumerate(levels):
            look, shape = _LOOK.get(level.severity, _LOOK["info"])
            end = 1.2 * max(abs(level.value), abs(level.limit or 0.0)) or 1.0
            marked = "" if level.severity == "info" else f"{level.severity}: "
            axes.text(
                0,
                place + 0.42,
                marked + shortened(level.label, 30 - len(marked) // 2),
                color=look if marked else INK,
                va="bottom",
            )
            limit = "not judged" if level.limit is None else f"limit {number(level.limit)}"
            axes.text(
                1, place + 0.42, f"{number(level.value)}, {limit}", color=MUTED, va="bottom", ha="right", fontsize=10
            )
            axes.plot([0, 1], [place + 0.66] * 2, color=GRID, linewidth=5, solid_capstyle="butt")
            if level.limit is not None:
                axes.plot([abs(level.limit) / end] * 2, [place + 0.48, place + 0.84], color=INK, linewidth=2)
            hollow = (
                {"markerfacecolor": PAGE, "markeredgewidth": 1.6} if level.limit is None else {"markeredgecolor": PAGE}
            )
            axes.plot(
                [abs(level.value) / end], [place + 0.66], shape, color=look, markersize=8.5, clip_on=False, **hollow
            )

    told = [
        f"{level.label}: {number(level.value)}"
        + (", not judged" if level.limit is None else f", limit {number(level.limit)}")
        + (f", {level.severity}." if level.severity != "info" else ".")
        for level in levels
    ]
    return chart(title, told, height, Margins(8, 8, 2, 4), draw)


def history_plot(title: str, levels: Sequence[tuple[str, Level]]) -> Chart:
    """One measure night after night, with its limit as a step line: (window, level)."""

    def draw(axes: Axes) -> None:
        nights = np.arange(len(levels))
        limits = [np.nan if level.limit is None else level.limit for _, level in levels]
        axes.plot(nights, limits, color=MUTED, linewidth=1.2, drawstyle="steps-mid", linestyle=(0, (3, 2)))
        axes.plot(nights, [level.value for _, level in levels], color=MODEL, linewidth=1.2, alpha=0.6)
        for night, (_, level) in zip(nights, levels, strict=True):
            look, shape = _LOOK.get(level.severity, _LOOK["info"])
            axes.plot(
                [night],
                [level.value],
                shape,
                color=look,
                markersize=5 if level.severity == "info" else 7.5,
                markeredgecolor=PAGE,
            )
        ends = [*limits, *(level.value for _, level in levels)]
        axes.set_ylim(min(0.0, np.nanmin(ends)), 1.12 * np.nanmax(ends) or 1.0)
        axes.set_xlim(-0.5, max(len(levels) - 0.5, 1))
        axes.set_xticks([0, len(levels) - 1], [levels[0][0][:10], levels[-1][0][:10]])
        axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.get_xticklabels()[-1].set_horizontalalignment("right")
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.tick_params(axis="y", labelcolor=MUTED, labelsize=10)

    beyond = [
        f"{level.severity} on {window} at {number(level.value)}" for window, level in levels if level.severity != "info"
    ]
    told = f"{len(levels)} nights, from {number(levels[0][1].value)} to {number(levels[-1][1].value)}; {', '.join(beyond) or 'never unusual'}."
    return chart(title, [told], 110, Margins(46, 10, 8, 22), draw)


def _limits(values: Sequence[float], is_difference: bool) -> tuple[float, float]:
    """From zero where that does not press everything into a corner; a little wider than the values."""
    low, high = min(values), max(values)
    if is_difference:
        low, high = min(low, 0.0), max(high, 0.0)
    if not is_difference and 0 <= low <= 0.7 * high:
        low = 0.0
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return (0.0 if low == 0 and not is_difference else low - room), high + room


def _few_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, place: int | None = None) -> str:
    if abs(value) >= 100_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.6g}".replace("-", "\N{MINUS SIGN}")


def _percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.tick_params(axis="both", labelcolor=MUTED, labelsize=10)
