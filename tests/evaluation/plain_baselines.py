"""The baselines again in plain Python, by their definitions and in exact fractions, to set the product's against. No code is shared with it.

A row of training is (sequence_id, tokens, session_starts, event_times, first_target), one of test the same. Ranks are found by comparing
the true item with every item of the vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

WEEK_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Row:
    """One row of sequences."""

    sequence_id: str
    tokens: list[int]
    session_starts: list[int]
    event_times: list[int]
    first_target: int

    def sessions(self) -> list[tuple[int, int]]:
        return list(zip(self.session_starts, [*self.session_starts[1:], len(self.tokens)], strict=True))


Scores = dict[int, Any]
Scorer = Callable[[Row, int], Scores]


@dataclass(frozen=True)
class PastSession:
    ended_at: int
    sequence_id: str
    start: int
    items: list[int]


def past_sessions(training: Sequence[Row]) -> list[PastSession]:
    """Most recent last."""
    found = []
    for row in training:
        for start, end in row.sessions():
            items = [row.tokens[i] for i in range(start, end) if i >= row.first_target - 1 and row.tokens[i] >= 2]
            if end > row.first_target and items:
                found.append(PastSession(row.event_times[end - 1], row.sequence_id, start, items))
    return sorted(found, key=lambda session: (session.ended_at, session.sequence_id, session.start))


def event_counts(training: Sequence[Row], since: float = -math.inf) -> Counter[int]:
    return Counter(
        token
        for row in training
        for token, at in list(zip(row.tokens, row.event_times, strict=True))[row.first_target :]
        if at > since
    )


def _query(row: Row, position: int) -> list[int]:
    number = max(n for n, start in enumerate(row.session_starts) if start <= position)
    current = [token for token in row.tokens[row.session_starts[number] : position] if token >= 2]
    if current or number == 0:
        return current
    return [t for t in row.tokens[row.session_starts[number - 1] : row.session_starts[number]] if t >= 2]


def popularity(training: Sequence[Row]) -> Scorer:
    return lambda row, position: {}


def session_popularity(training: Sequence[Row]) -> Scorer:
    def score(row: Row, position: int) -> Scores:
        begin = max(start for start in row.session_starts if start <= position)
        return Counter(row.tokens[begin:position])

    return score


def recency(training: Sequence[Row]) -> Scorer:
    return lambda row, position: {token: place for place, token in enumerate(row.tokens[:position])}


def markov(training: Sequence[Row]) -> Scorer:
    pairs = Counter(pair for s in past_sessions(training) for pair in zip(s.items, s.items[1:], strict=False))

    def score(row: Row, position: int) -> Scores:
        query = _query(row, position)
        return {after: n for (before, after), n in pairs.items() if query and before == query[-1]}

    return score


def item_knn(training: Sequence[Row]) -> Scorer:
    counts = [Counter(session.items) for session in past_sessions(training)]

    def num(*items: int) -> int:
        """Sessions that hold these items, as often as they stand here."""
        return sum(all(each[item] >= items.count(item) for item in items) for each in counts)

    def score(row: Row, position: int) -> Scores:
        query = _query(row, position)
        if not query:
            return {}
        latest, known = query[-1], sorted(set().union(*counts))
        # Squared, so that equal cosines are equal.
        cosines = {item: Fraction(num(item, latest) ** 2, (num(item) + 20) * (num(latest) + 20)) for item in known}
        return {item: cosine for item, cosine in cosines.items() if cosine}

    return score


def vsknn(
    training: Sequence[Row], k: int = 500, m: int = 2500, decay_power: int = 2, idf_weight: float = 5.0
) -> Scorer:
    sessions = past_sessions(training)
    occurrences = Counter(item for session in sessions for item in session.items)

    def score(row: Row, position: int) -> Scores:
        query = _query(row, position)
        n = len(query)
        weight = {item: Fraction(place, n) ** decay_power for place, item in enumerate(query, 1)}
        sharing = [each for each in sessions if set(each.items) & set(query)][-m:]
        alike = [(sum(weight[i] for i in set(each.items) if i in weight), age) for age, each in enumerate(sharing)]
        total: dict[int, Fraction] = {}
        for likeness, age in sorted(alike, reverse=True)[:k]:
            items = set(sharing[age].items)
            steps_back = next(step for step, item in enumerate(reversed(query), 1) if item in items)
            for item in items:
                total[item] = total.get(item, Fraction(0)) + likeness / steps_back
        idf = {item: math.log(len(sessions) / occurrences[item]) for item in total}
        return {item: float(sum_) * (1 + idf_weight * max(0.0, idf[item])) for item, sum_ in total.items()}

    return score


PLAIN: dict[str, Callable[[Sequence[Row]], Scorer]] = {
    "popularity": popularity,
    "session_popularity": session_popularity,
    "recency": recency,
    "markov": markov,
    "item_knn": item_knn,
    "vsknn": vsknn,
}

Placed = dict[tuple[str, int], tuple[int | None, list[int]]]


def plain_ranks(
    name: str,
    tests: Sequence[Row],
    training: Sequence[Row],
    vocabulary: Sequence[int],
    list_length: int,
    **settings: Any,
) -> Placed:
    """(sequence_id, position) -> rank and list."""
    scorer = PLAIN[name](training, **settings)
    counts, recent = event_counts(training), Counter[int]()
    if name == "recency":
        times = [at for row in training for at in row.event_times[row.first_target :]]
        recent = event_counts(training, max(times, default=0) - WEEK_SECONDS)
    placed: Placed = {}
    for row in tests:
        for position in range(row.first_target, len(row.tokens)):
            scores = scorer(row, position)

            def worth(item: int, scores: Scores = scores) -> tuple[bool, Any, int, int]:
                return item in scores, scores.get(item, 0), recent[item], counts[item]

            target = row.tokens[position]
            rank = sum(worth(item) >= worth(target) for item in vocabulary) if target in vocabulary else None
            best_first = sorted(sorted(vocabulary), key=worth, reverse=True)
            placed[row.sequence_id, position] = rank, best_first[:list_length]
    return placed
