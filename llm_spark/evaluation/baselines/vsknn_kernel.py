"""V-SkNN at one position: the sessions most like the current one, and what stood in them, in numpy. It needs no Spark.

Array suffixes: S sessions (most recent last), N their items end to end, U different items, M sampled sessions, C candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_spark.evaluation.baselines.ranking_kernel import (
    Build,
    Doubles,
    History,
    Ints,
    Items,
    Popularity,
)

_GRAIN = 2.0**30
"""Weights are rounded to multiples of its inverse: sums of up to 2^23 of them are exact, so equal scores are equal in any order of adding."""


@dataclass(frozen=True)
class VsknnSettings:
    """V-SkNN's settings. With these defaults it gives the lists that were published for rsc15-100k (HR@20 .610, MRR@20 .334)."""

    num_neighbours: int = 500
    """Sessions whose items are counted (the paper's k)."""
    sample_size: int = 2500
    """Most recent sessions with an item in common, among which the neighbours are looked for (the paper's m)."""
    decay_power: int = 2
    """The i-th of n events of the current session weighs (i/n) to this power. 1 is the paper's linear decay, 0 none."""
    idf_weight: float = 5.0
    """An item's score is multiplied by 1 + this * log(sessions / events of the item), at least 1; 0 leaves it as it is."""


class VectorSessionKnn:
    """Vector multiplication session-based kNN (Ludewig and Jannach 2018, "Evaluation of Session-based Recommendation Algorithms").

    A past session is as like the current one as the sum of the weights of the items that they share, late events weighing more. Of the
    `sample_size` most recent sessions that share an item, the `num_neighbours` most like count (of equals the more recent). Each gives its items
    its likeness divided by how far back in the current session the latest shared item stands (1 for the last event).
    """

    def __init__(self, tokens_N: Ints, lengths_S: Ints, item_weight_N: Doubles, settings: VsknnSettings) -> None:
        """Sessions in order of time, most recent last; a session's tokens are different. `item_weight_N` is the item's, at each of its places."""
        self._settings = settings
        self._offsets_S = np.concatenate([[0], np.cumsum(lengths_S)])
        self._tokens_U, first_U, self._item_N = np.unique(tokens_N, return_index=True, return_inverse=True)
        self._weight_U = item_weight_N[first_U]
        by_item = np.argsort(self._item_N, kind="stable")
        sessions_N = np.repeat(np.arange(len(lengths_S)), lengths_S)[by_item]
        ends_U = np.cumsum(np.bincount(self._item_N, minlength=len(self._tokens_U)))
        # The most recent `sample_size` sessions with each item, most recent last.
        self._sessions_of = {
            token: sessions[-settings.sample_size :]
            for token, sessions in zip(self._tokens_U.tolist(), np.split(sessions_N, ends_U[:-1]), strict=False)
        }
        # Scratch, all 0 between two calls.
        self._likeness_S = np.zeros(len(lengths_S))
        self._steps_back_S = np.zeros(len(lengths_S), np.int64)
        self._score_U = np.zeros(len(self._tokens_U))
        self._place_U = np.zeros(len(self._tokens_U), np.int64)

    def candidates(self, history: History, position: int) -> tuple[Ints, Doubles]:
        neighbours_M, weights_M = self._neighbours(history.query(position))
        lengths_M = self._offsets_S[neighbours_M + 1] - self._offsets_S[neighbours_M]
        ends_M = np.cumsum(lengths_M)
        if len(ends_M) == 0:
            return self._tokens_U[:0], self._weight_U[:0]
        places = np.arange(ends_M[-1]) + np.repeat(self._offsets_S[neighbours_M] - (ends_M - lengths_M), lengths_M)
        items = self._item_N[places]
        np.add.at(self._score_U, items, np.repeat(weights_M, lengths_M))
        # Each item once: at the place that was written last.
        self._place_U[items] = np.arange(len(items))
        items_C = items[self._place_U[items] == np.arange(len(items))]
        scores_C = self._score_U[items_C] * self._weight_U[items_C]
        self._score_U[items_C] = 0
        return self._tokens_U[items_C], scores_C

    def _neighbours(self, query: Ints) -> tuple[Ints, Doubles]:
        """The neighbours of a session's events, and what each gives to its items."""
        sharing = [np.zeros(0, np.int64)]
        steps_back_of: dict[int, int] = {}
        for steps_back, token in enumerate(query[::-1].tolist(), 1):
            steps_back_of.setdefault(token, steps_back)
        for token, steps_back in steps_back_of.items():
            sessions = self._sessions_of.get(token)
            if sessions is None:
                continue
            nearness = (len(query) - steps_back + 1) / len(query)
            self._likeness_S[sessions] += round(nearness**self._settings.decay_power * _GRAIN)
            new = sessions[self._steps_back_S[sessions] == 0]
            self._steps_back_S[new] = steps_back
            sharing.append(new)
        found = np.concatenate(sharing)
        sample_M = _largest(found, found, self._settings.sample_size)
        likeness_M = self._likeness_S[sample_M]
        chosen = _most_like(likeness_M, sample_M, self._settings.num_neighbours)
        sample_M, likeness_M = sample_M[chosen], likeness_M[chosen]
        weights_M = np.rint(likeness_M / self._steps_back_S[sample_M]) / _GRAIN
        self._likeness_S[found] = 0
        self._steps_back_S[found] = 0
        return sample_M, weights_M


def _largest(values: Ints, keys: Ints, num: int) -> Ints:
    return values if len(values) <= num else values[np.argpartition(keys, -num)[-num:]]


def _most_like(likeness_M: Doubles, sessions_M: Ints, num: int) -> Ints:
    """Places of the `num` sessions that are most like, of equals the most recent."""
    if len(likeness_M) <= num:
        return np.arange(len(likeness_M))
    least = np.partition(likeness_M, -num)[-num]
    above, level = np.flatnonzero(likeness_M > least), np.flatnonzero(likeness_M == least)
    return np.concatenate([above, _largest(level, sessions_M[level], num - len(above))])


def vector_session_knn(settings: VsknnSettings) -> Build:
    """Builds it from rows of a session (ended_at, sequence_id, start, its different `tokens`), which may come more than once."""
    return functools.partial(_build, settings=settings)


def _build(
    items: Items, learned: Iterator[pa.RecordBatch], settings: VsknnSettings
) -> tuple[Popularity, VectorSessionKnn]:
    popularity = Popularity.of(items.tokens_I, items.numbers_I, np.zeros(len(items.tokens_I)))
    tokens, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for sessions in _each_once(learned):
        tokens.append(sessions.flatten().to_numpy())
        lengths.append(pc.list_value_length(sessions).to_numpy())
    tokens_N = np.concatenate(tokens).astype(np.int64)
    weight_V = np.ones(len(popularity.level_V))
    weight_V[items.tokens_I] = items.more_numbers_I
    # A token beyond the vocabulary is recommended nowhere, whatever it weighs.
    weight_N = weight_V[np.where(popularity.has(tokens_N), tokens_N, 0)]
    return popularity, VectorSessionKnn(tokens_N, np.concatenate(lengths), weight_N, settings)


def _each_once(learned: Iterator[pa.RecordBatch]) -> Iterator[pa.ListArray]:
    """The sessions' tokens; those that come more than once stand beside one another."""
    latest: tuple[str, int] | None = None
    for batch in learned:
        rows, starts = batch.column("sequence_id"), batch.column("start")
        codes = rows.dictionary_encode().indices.to_numpy()
        is_new = (np.diff(codes, prepend=-1) != 0) | (np.diff(starts.to_numpy(), prepend=-1) != 0)
        is_new[0] = (rows[0].as_py(), starts[0].as_py()) != latest
        latest = rows[-1].as_py(), starts[-1].as_py()
        yield batch.column("tokens").filter(pa.array(is_new))
