"""Matplotlib's SVG made part of a page: colours that follow the page's scheme, the page's font, text that is text, alternative text.

A chart is drawn in placeholder colours, each of which becomes a CSS variable of the page: so one drawing serves light, dark and print. It is
drawn as wide as a phone's column, in units of CSS pixels, so that its text is as large on a phone as the text around it.
"""

from __future__ import annotations

import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 340
"""CSS pixels: what a phone of 390 leaves between its margins."""
_PIXELS_PER_INCH = 72  # of matplotlib's SVG

INK, MUTED, GRID, PAGE = "#010101", "#020202", "#030303", "#040404"
MODEL, OTHER, BASELINE, WARN, BAD = "#050505", "#060606", "#070707", "#080808", "#090909"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAGE: "--card",
    MODEL: "--model",
    OTHER: "--other",
    BASELINE: "--baseline",
    WARN: "--warn",
    BAD: "--bad",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llm_spark",
    # Names come from raw logs, and a dollar sign in one begins no formula.
    "text.parse_math": False,
    "font.size": 11.0,
    "figure.facecolor": "none",
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.unicode_minus": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 11.0,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Margins:
    """Pixels between the axes and the edges of the picture."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Chart:
    """One picture for the page, which holds what a reader who does not see it is told."""

    svg: str


def chart(title: str, sentences: Sequence[str], height: float, margins: Margins, draw: Callable[[Axes], None]) -> Chart:
    """Let `draw` fill axes of these measures; `sentences` say the same in words. The same values give the same bytes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH))
        canvas = FigureCanvasSVG(figure)
        box = (
            margins.left,
            margins.bottom,
            WIDTH - margins.left - margins.right,
            height - margins.top - margins.bottom,
        )
        axes = figure.add_axes((box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height))
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        draw(axes)
        file = io.StringIO()
        # No date, no creator: metadata would differ from night to night, and names a web address.
        canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(_inlined(file.getvalue(), title, " ".join(sentences), height))


def _inlined(drawing: str, title: str, text: str, height: float) -> str:
    root = ET.fromstring(drawing.encode())
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{_SVG}metadata" or (child.tag == f"{_SVG}style" and parent.tag == f"{_SVG}defs"):
                parent.remove(child)
    referenced = _referenced(root)
    # The drawing's own hash keeps the ids of several pictures on one page apart.
    prefix = "c" + _checksum(drawing)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            plain = name.removeprefix(_XLINK)
            if plain == "id":
                if value in referenced:
                    element.set("id", f"{prefix}-{value}")
            elif plain == "href":
                element.set("href", f"#{prefix}-{value[1:]}")
            elif plain == "style":
                element.set("style", _styled(value, prefix))
            else:
                element.set(plain, _rounded(value).replace("url(#", f"url(#{prefix}-"))
    root.attrib.clear()
    root.attrib |= {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": f"{title}. {text}".strip()}
    spoken = ET.Element("title")
    spoken.text = title
    described = ET.Element("desc")
    described.text = text
    root[:0] = [spoken, described]
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _referenced(root: ET.Element) -> set[str]:
    return {name for element in root.iter() for value in element.attrib.values() for name in _references(value)}


def _references(value: str) -> Iterator[str]:
    yield from re.findall(r"url\(#([^)]+)\)", value)
    if value.startswith("#"):
        yield value[1:]


def _styled(value: str, prefix: str) -> str:
    value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value)
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var({variable})")
    # The size stays, the face is the page's.
    return re.sub(r"\s*font-family:[^;]*(;|$)", "", value)


def _rounded(value: str) -> str:
    """Coordinates to a hundredth of a pixel."""
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
