"""Numbers, times and names as the page writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

_UPPER = {"mrr": "MRR", "ndcg": "NDCG", "auc": "AUC"}

METRICS = {
    "accuracy": "how often the first item is the one that came",
    "recall": "how often the item that came is among the first k",
    "mrr": "mean of 1 / rank of the item that came, 0 beyond k",
    "ndcg": "mean of 1 / log2(1 + rank) of the item that came, 0 beyond k",
    "hit_rate": "share of sessions with at least one hit within k",
    "coverage": "share of all items that anybody is recommended",
    "novelty": "bits of surprise in a recommended item: rarer items have more",
    "popularity_bias": "how much more popular the recommended items are than those that came; 0 is even",
    "confidence": "mean probability that the model gives to the first item of its list",
    "diversity": "share of pairs in a list that differ in the chosen attribute",
}
"""What each metric of `evaluation` means, by its name before the @."""

SLICES = {
    "Place in the session": {
        "first_in_session": "first item",
        "within_session": "any later item",
        "session_position_1": "second item",
        "session_position_2_to_4": "3rd to 5th",
        "session_position_5_to_9": "6th to 10th",
        "session_position_10_or_more": "11th and later",
    },
    "Sessions the user had before": {
        "history_new": "none",
        "history_few": "1 to 4",
        "history_many": "5 or more",
    },
    "Time since the event before": {
        "gap_below_minute": "below a minute",
        "gap_below_hour": "below an hour",
        "gap_below_day": "below a day",
        "gap_below_week": "below a week",
        "gap_week_or_more": "a week or more",
    },
    "Popularity of the item that came": {
        **{
            f"item_popularity_decile_{d}": f"tenth {d}{' (rarest)' if d == 1 else ' (top)' if d == 10 else ''}"
            for d in range(1, 11)
        },
        "item_unknown": "unknown item",
    },
}
"""Slices of `evaluation` under the question that they answer, in their order, as the page names them."""


def named(name: str) -> str:
    """A column's or metric's name for people: `ndcg@20` -> `NDCG@20`, `popularity_bias@20` -> `popularity bias@20`."""
    head, at, k = name.partition("@")
    return _UPPER.get(head, head.replace("_", " ")) + at + k


def number(value: float | None, signed: bool = False) -> str:
    """With three digits that matter, or whole from a thousand on."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else "infinite"
    sign = "+" if signed and value > 0 else ""
    size = abs(value)
    if size >= 1000 or float(value).is_integer():
        text = f"{value:,.0f}"
    elif size >= 0.0995:
        text = f"{value:.3f}" if size < 10 else f"{value:.1f}"
    else:
        text = f"{value:.4f}" if size >= 0.00095 else f"{value:.1e}"
    return sign + text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{number(low)}, {number(high)}]"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "did not finish"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M}"


def counts(numbers: Mapping[str, int]) -> list[str]:
    return [f"{value:,} {name.replace('_', ' ')}" for name, value in numbers.items() if value or len(numbers) == 1]


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def blocks(remarks: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    """Remarks as they follow each other, those that are rows of a table set in columns together: (is a table, lines)."""
    group: list[str] = []
    in_table = False
    for remark in remarks:
        is_row = re.search(r"\S {2,}\S|^ {2,}\S", remark) is not None
        if group and is_row != in_table:
            yield in_table, group
            group = []
        in_table = is_row
        group.append(remark)
    if group:
        yield in_table, group
