"""Histories of known users, session after session, cut by time into training and evaluation.

Shape suffixes: N tokens of one user, S sessions of one user, B rows, P predicted positions, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.quality.histories import Histories, Ints
from tests.benchmarks.quality.measures import Floats

MARKOV_BATCH = 1024


@dataclass(frozen=True)
class User:
    """All events of one user, oldest first."""

    tokens_N: Ints
    event_times_N: Ints
    """Epoch seconds."""
    session_starts_S: Ints
    """Positions at which sessions begin; the first is 0."""


@dataclass(frozen=True)
class Windows:
    """Rows that predict, between them, every event of a stretch of time once, and the user of each row."""

    histories: Histories
    user_B: Ints


def windows(
    users: Sequence[User], begin_seconds: int, end_seconds: int, target_tokens: int, context_tokens: int
) -> Windows:
    """Predict the sessions that begin in [begin, end): a row takes whole sessions until they hold `target_tokens`, and the
    whole sessions before them until those hold `context_tokens`. A user's first event of all is context, never a target.
    """
    tokens, times, starts, first_targets, owners = [], [], [], [], []
    for number, user in enumerate(users):
        bounds = np.append(user.session_starts_S, len(user.tokens_N))
        began_S = user.event_times_N[user.session_starts_S]
        wanted = np.flatnonzero((began_S >= begin_seconds) & (began_S < end_seconds))
        if not len(wanted):
            continue
        session, last = int(wanted[0]), int(wanted[-1]) + 1
        while session < last:
            first, after = session, session + 1
            while after < last and bounds[after] - bounds[session] < target_tokens:
                after += 1
            while first > 0 and bounds[session] - bounds[first] < context_tokens:
                first -= 1
            if bounds[after] - bounds[first] > 1:
                part = slice(bounds[first], bounds[after])
                tokens.append(user.tokens_N[part])
                times.append(user.event_times_N[part])
                starts.append(user.session_starts_S[first:after] - bounds[first])
                first_targets.append(max(1, bounds[session] - bounds[first]))
                owners.append(number)
            session = after
    histories = Histories(
        tokens_N=np.concatenate(tokens),
        row_offsets=np.cumsum([0, *map(len, tokens)]),
        session_starts_S=np.concatenate(starts),
        session_offsets=np.cumsum([0, *map(len, starts)]),
        first_target_B=np.array(first_targets, np.int64),
        event_times_N=np.concatenate(times),
    )
    return Windows(histories, np.array(owners, np.int64))


@dataclass(frozen=True)
class Targets:
    """Every predicted position of some rows, in the rows' order."""

    token_P: Ints
    previous_P: Ints
    """The token before it in its session; -1 where it begins the session."""
    row_P: Ints

    @classmethod
    def of(cls, histories: Histories) -> Targets:
        lengths_B = histories.length_B
        position_N = np.arange(len(histories.tokens_N)) - np.repeat(histories.row_offsets[:-1], lengths_B)
        previous_N = np.concatenate([[-1], histories.tokens_N[:-1]])
        row_of_session = np.repeat(np.arange(len(histories)), np.diff(histories.session_offsets))
        previous_N[histories.session_starts_S + histories.row_offsets[row_of_session]] = -1
        wanted_N = position_N >= np.repeat(histories.first_target_B, lengths_B)
        row_N = np.repeat(np.arange(len(histories)), lengths_B)
        return cls(histories.tokens_N[wanted_N], previous_N[wanted_N], row_N[wanted_N])


def popularity_ranks(training: Targets, evaluation: Targets, num_tokens: int) -> Ints:
    """Items in the order of how often training has them as targets; ties count against us. Tokens 0 and 1 are no items."""
    count_V = np.bincount(training.token_P, minlength=num_tokens)[2:]
    rank_V = (count_V[None, :] >= count_V[:, None]).sum(axis=1)
    ranks_P: Ints = np.where(evaluation.token_P >= 2, rank_V[evaluation.token_P - 2], 0)
    return ranks_P


def markov_ranks(training: Targets, evaluation: Targets, num_tokens: int) -> Ints:
    """First-order Markov chain: items in the order of how often they followed the last one (or began a session) in
    training, those that never did in the order of popularity.
    """
    count_V = np.bincount(training.token_P, minlength=num_tokens).astype(np.float64)
    follows_VV = np.zeros((num_tokens, num_tokens), np.float32)  # row 0, which no event carries: a session begins
    np.add.at(follows_VV, (np.maximum(training.previous_P, 0), training.token_P), 1)
    ranks = []
    for first in range(0, len(evaluation.token_P), MARKOV_BATCH):
        part = slice(first, first + MARKOV_BATCH)
        score_CV: Floats = follows_VV[np.maximum(evaluation.previous_P[part], 0)] + count_V / (count_V.sum() + 1)
        target_C = evaluation.token_P[part]
        rank_C = (score_CV[:, 2:] >= np.take_along_axis(score_CV, target_C[:, None], axis=1)).sum(axis=1)
        ranks.append(np.where(target_C >= 2, rank_C, 0))
    return np.concatenate(ranks)
