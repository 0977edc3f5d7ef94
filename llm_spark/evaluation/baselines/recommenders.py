"""What each simple baseline scores at a position, in numpy. It needs no Spark.

Each recommender has a `build` that makes it from what was learned. Array suffixes as in ranking_kernel.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from llm_spark.evaluation.baselines.ranking_kernel import Doubles, History, Ints, Knowledge, Popularity, flattened

_NOTHING: tuple[Ints, Doubles] = (np.zeros(0, np.int64), np.zeros(0))


def _popularity(knowledge: Knowledge) -> Popularity:
    return Popularity.of(*knowledge.item_columns())


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


def unpersonal(knowledge: Knowledge) -> tuple[Popularity, Unpersonal]:
    return _popularity(knowledge), Unpersonal()


def session_counts(knowledge: Knowledge) -> tuple[Popularity, SessionCounts]:
    return _popularity(knowledge), SessionCounts()


def last_seen(knowledge: Knowledge) -> tuple[Popularity, LastSeen]:
    return _popularity(knowledge), LastSeen()


def item_lists(knowledge: Knowledge) -> tuple[Popularity, ItemLists]:
    """From rows of an item (`start`), the `tokens` on its list and their scores (`numbers`)."""
    learned = knowledge.learned
    if learned.num_rows == 0:
        return _popularity(knowledge), ItemLists({})
    lengths = pc.list_value_length(learned["tokens"]).to_numpy()
    cuts = np.cumsum(lengths)[:-1]
    tokens = np.split(flattened(learned["tokens"]).astype(np.int64), cuts)
    scores = np.split(flattened(learned["numbers"]), cuts)
    items = learned["start"].to_pylist()
    return _popularity(knowledge), ItemLists(dict(zip(items, zip(tokens, scores, strict=True), strict=True)))
