"""What each simple baseline scores at a position, in numpy. It needs no Spark.

Each recommender has a `build` that makes it from what was learned. Array suffixes as in ranking_kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_spark.evaluation.baselines.ranking_kernel import Doubles, History, Ints, Items, Popularity

_NOTHING: tuple[Ints, Doubles] = (np.zeros(0, np.int64), np.zeros(0))


def _popularity(items: Items) -> Popularity:
    return Popularity.of(items.tokens_I, items.numbers_I, items.more_numbers_I)


class Unpersonal:
    """Scores nothing: everyone gets what is popular."""

    def candidates(self, history: History, position: int) -> tuple[Ints, Doubles]:
        return _NOTHING


class SessionCounts:
    """Scores the items of the session so far by how often they stand in it."""

    def candidates(self, history: History, position: int) -> tuple[Ints, Doubles]:
        tokens_C, counts_C = np.unique(history.session_so_far(position), return_counts=True)
        return tokens_C, counts_C.astype(np.float64)


class LastSeen:
    """Scores the items of the row so far by the place where they stand last."""

    def candidates(self, history: History, position: int) -> tuple[Ints, Doubles]:
        latest_first = history.seen(position)[::-1]
        tokens_C, places_C = np.unique(latest_first, return_index=True)
        return tokens_C, -places_C.astype(np.float64)


class ItemLists:
    """Scores the items on the list of the latest known item."""

    def __init__(self, lists: dict[int, tuple[Ints, Doubles]]) -> None:
        self._lists = lists

    def candidates(self, history: History, position: int) -> tuple[Ints, Doubles]:
        query = history.query(position)
        return self._lists.get(int(query[-1]), _NOTHING) if len(query) else _NOTHING


def unpersonal(items: Items, learned: Iterator[pa.RecordBatch]) -> tuple[Popularity, Unpersonal]:
    return _popularity(items), Unpersonal()


def session_counts(items: Items, learned: Iterator[pa.RecordBatch]) -> tuple[Popularity, SessionCounts]:
    return _popularity(items), SessionCounts()


def last_seen(items: Items, learned: Iterator[pa.RecordBatch]) -> tuple[Popularity, LastSeen]:
    return _popularity(items), LastSeen()


def item_lists(items: Items, learned: Iterator[pa.RecordBatch]) -> tuple[Popularity, ItemLists]:
    """From rows of an item (`start`), the `tokens` on its list and their scores (`numbers`)."""
    lists: dict[int, tuple[Ints, Doubles]] = {}
    for batch in learned:
        cuts = np.cumsum(pc.list_value_length(batch.column("tokens")).to_numpy())[:-1]
        tokens = np.split(batch.column("tokens").flatten().to_numpy().astype(np.int64), cuts)
        scores = np.split(batch.column("numbers").flatten().to_numpy(), cuts)
        lists.update(zip(batch.column("start").to_pylist(), zip(tokens, scores, strict=True), strict=True))
    return _popularity(items), ItemLists(lists)
