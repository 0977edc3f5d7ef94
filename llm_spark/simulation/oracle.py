"""The best that any predictor can do on simulated logs: exact Bayesian prediction of the next item.

The oracle knows the process's parameters, but neither a user's taste nor a session's intent. Both are finite, so the
forward recursion of a hidden Markov model (Rabiner 1989, section III.A) over (taste, intent) is exact: a session's end
sums the intent out and draws a new one from the taste; an item multiplies the weights by its likelihood. Recommending
the k items of largest predictive probability maximises the expected recall@k, so no model can beat the oracle's recall
but by luck.

An unknown item is a missing observation. What follows it may still follow the chain from it, so the recursion then
carries the joint weight of (taste, intent, place of the unknown item in the intent's cycle), for these users only.

Shapes: B users of a batch, A of them that are still at it, T positions, G tastes, Z intents, M items of an intent, V
items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_spark.simulation.process import History, Process

UNKNOWN = -1
"""Index of an item that was there, but is not known."""

_NO_ITEM = -2
_BATCH_USERS = 512
_TIE = 1 - 1e-9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class OracleResult:
    """Figures over all targets; ties count against the predictor, and so does an unknown target, which nobody can
    name."""

    k: int
    num_targets: int
    num_unknown_targets: int
    recall: float
    """recall@k of the best predictor there is."""
    mrr: float
    """MRR@k of the same predictor."""
    session_only_recall: float
    """recall@k of the best predictor that forgets the user when a session ends: what is missing to `recall` is worth of
    long memory."""
    session_only_mrr: float
    popularity_recall: float
    """recall@k of recommending the items that the process brings most often, the same to everyone."""
    popularity_mrr: float


class Oracle:
    """Exact next-item prediction under one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._index_of = {item_id: item for item, item_id in enumerate(process.item_ids)}

    def predictive(self, items: ArrayLike, session_starts: Sequence[int]) -> Floats:
        """p(item at t | items before t) of one user, [T, num_items]; each row sums to one.

        `items` are item indices, `UNKNOWN` (-1) where an item is not known; `session_starts` are the offsets at which
        sessions begin, the first of them 0.
        """
        item_T = np.asarray(items, dtype=np.int64)
        opens_T = np.zeros(len(item_T), bool)
        opens_T[list(session_starts)] = True
        if len(item_T) and not opens_T[0]:
            raise ValueError(f"session_starts={list(session_starts)!r}: the first session begins at 0")
        beliefs = _Beliefs(self.process, 1, remember=True)
        predictive_TV = np.empty((len(item_T), self.process.config.num_items))
        for step, item in enumerate(item_T):
            if opens_T[step]:
                beliefs.open_session(np.array([0]))
            predictive_TV[step] = beliefs.predict(np.array([0]))[0]
            beliefs.observe(np.array([item]))
        return predictive_TV

    def best_recall(self, histories: Sequence[History | tuple[list[str], list[int], int]], k: int = 10) -> OracleResult:
        """Rank every target among all items from what stands before it: the oracle, the same without long memory,
        popularity.

        `histories` are (item_ids, session_starts, first_target), one a user; positions from `first_target` on are
        targets. An item id that is none of the process's counts as unknown. A history that was cut at its beginning is
        read as if a session began there.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        known = [
            (
                np.array([self._index_of.get(item_id, UNKNOWN) for item_id in item_ids], np.int64),
                list(starts),
                first_target,
            )
            for item_ids, starts, first_target in histories
            if len(item_ids)
        ]
        known.sort(key=lambda history: -len(history[0]))
        targets = np.concatenate([item_T[first:] for item_T, _, first in known] or [np.empty(0, np.int64)])
        num_unknown = int((targets == UNKNOWN).sum())

        figures = []
        for remember in (True, False):
            batches = [known[begin : begin + _BATCH_USERS] for begin in range(0, len(known), _BATCH_USERS)]
            ranks = [rank for batch in batches for rank in self._ranks(batch, remember)]
            figures.append(_recall_and_mrr(np.concatenate(ranks or [np.empty(0, np.int64)]), len(targets), k))
        popularity_V = self.popularity()
        popular_rank_V = (popularity_V[None, :] >= popularity_V[:, None] * _TIE).sum(axis=1)
        figures.append(_recall_and_mrr(popular_rank_V[targets[targets != UNKNOWN]], len(targets), k))
        (recall, mrr), (session_recall, session_mrr), (popular_recall, popular_mrr) = figures
        return OracleResult(
            k=k,
            num_targets=len(targets),
            num_unknown_targets=num_unknown,
            recall=recall,
            mrr=mrr,
            session_only_recall=session_recall,
            session_only_mrr=session_mrr,
            popularity_recall=popular_recall,
            popularity_mrr=popular_mrr,
        )

    def popularity(self) -> Floats:
        """The expected share of each item among all events, [num_items]; sums to one.

        The predictive law of a session of which every item is unknown, averaged over the geometric law of a session's
        length.
        """
        beliefs = _Beliefs(self.process, 1, remember=True)
        beliefs.open_session(np.array([0]))
        going_on = 1 - 1 / self.process.config.mean_session_length
        popularity_V: Floats = np.zeros(self.process.config.num_items)
        still_open = 1.0
        while still_open > 1e-6:
            popularity_V += still_open * beliefs.predict(np.array([0]))[0]
            beliefs.observe(np.array([UNKNOWN]))
            still_open *= going_on
        popularity_V /= popularity_V.sum()
        return popularity_V

    def _ranks(self, histories: list[tuple[Ints, list[int], int]], remember: bool) -> list[Ints]:
        """Ranks (1 is best) of all known targets; `histories` stand longest first."""
        lengths = np.array([len(item_T) for item_T, _, _ in histories])
        first_target_B = np.array([first for _, _, first in histories])
        item_BT = np.full((len(histories), lengths[0]), UNKNOWN)
        opens_BT = np.zeros(item_BT.shape, bool)
        for row, (item_T, starts, _) in enumerate(histories):
            item_BT[row, : len(item_T)] = item_T
            opens_BT[row, [0, *starts]] = True

        beliefs = _Beliefs(self.process, len(histories), remember)
        ranks = []
        for step in range(lengths[0]):
            num_active = int((lengths > step).sum())
            item_A = item_BT[:num_active, step]
            beliefs.open_session(np.flatnonzero(opens_BT[:num_active, step]))
            targeted = np.flatnonzero((item_A != UNKNOWN) & (first_target_B[:num_active] <= step))
            if len(targeted):
                predictive_AV = beliefs.predict(targeted)
                target_A = predictive_AV[np.arange(len(targeted)), item_A[targeted]]
                ranks.append((predictive_AV >= target_A[:, None] * _TIE).sum(axis=1))
            beliefs.observe(item_A)
        return ranks


class _Beliefs:
    """What the oracle holds of each user of a batch: the weights of (taste, intent), and the item before."""

    def __init__(self, process: Process, num_users: int, remember: bool) -> None:
        config = process.config
        self.process = process
        self.remember = remember
        self.noise = config.noise_share / config.num_items
        self.chain = config.chain_share
        self.taste = 1 - config.noise_share - config.chain_share
        self.num_states = config.num_tastes * config.num_intents
        self.steps = list(enumerate(config.chain_steps, start=1))
        self.step_share_M = np.zeros(config.items_per_intent)
        self.step_share_M[1 : len(config.chain_steps) + 1] = config.chain_steps
        self.intents_Z = np.arange(config.num_intents)
        preference_GZV = np.zeros((config.num_tastes, config.num_intents, config.num_items))
        preference_GZV[:, self.intents_Z[:, None], process.cycle_ZM] = process.preference_GZM
        self.preference_SV = preference_GZV.reshape(self.num_states, config.num_items)
        self.preference_VGZ = np.ascontiguousarray(np.moveaxis(preference_GZV, 2, 0))

        prior_GZ = process.taste_G[:, None] * process.intent_GZ
        self.weight_BGZ = np.tile(prior_GZ, (num_users, 1, 1))
        self.before_B = np.full(num_users, _NO_ITEM)
        # Of users whose item before is unknown: weight of (taste, intent, place of that item), which sums to less than
        # the weight of (taste, intent) where the item may be none of the intent's.
        self.hidden: dict[int, Floats] = {}

    def open_session(self, rows: Ints) -> None:
        taste_AG = self.weight_BGZ[rows].sum(axis=2) if self.remember else self.process.taste_G[None, :]
        self.weight_BGZ[rows] = taste_AG[:, :, None] * self.process.intent_GZ
        self.before_B[rows] = _NO_ITEM
        for row in rows:
            self.hidden.pop(int(row), None)

    def predict(self, rows: Ints) -> Floats:
        """Probability of each item as the next one, [rows, V]."""
        place_AZ = self._place_before(rows)
        inside_AZ = place_AZ >= 0
        chained_AGZ = self.weight_BGZ[rows] * inside_AZ[:, None, :]
        hidden_rows = [(at, self.hidden[int(row)]) for at, row in enumerate(rows) if int(row) in self.hidden]
        for at, hidden_GZM in hidden_rows:
            chained_AGZ[at] = hidden_GZM.sum(axis=2)
        tasted_AGZ = (self.taste + self.chain) * self.weight_BGZ[rows] - self.chain * chained_AGZ
        predictive_AV = tasted_AGZ.reshape(len(rows), self.num_states) @ self.preference_SV
        predictive_AV += self.noise

        at_C, intent_C = np.nonzero(inside_AZ)
        chained_C = self.chain * chained_AGZ.sum(axis=1)[at_C, intent_C]
        for step, share in self.steps:
            next_C = self.process.cycle_ZM[intent_C, (place_AZ[at_C, intent_C] + step) % len(self.step_share_M)]
            np.add.at(predictive_AV, (at_C, next_C), share * chained_C)
        for at, hidden_GZM in hidden_rows:
            np.add.at(predictive_AV[at], self.process.cycle_ZM, self.chain * self._follow(hidden_GZM.sum(axis=0)))
        return predictive_AV

    def observe(self, item_A: Ints) -> None:
        """Take in one item each of the first users of the batch; `UNKNOWN` is an item that is missing."""
        for row in np.flatnonzero(item_A == UNKNOWN):
            self._observe_unknown(int(row))
        rows = np.flatnonzero(item_A != UNKNOWN)
        item_A = item_A[rows]
        place_AZ = self._place_before(rows)
        next_place_AZ = self.process.position_VZ[item_A]
        both_AZ = (place_AZ >= 0) & (next_place_AZ >= 0)
        chain_AZ = both_AZ * self.step_share_M[(next_place_AZ - place_AZ) % len(self.step_share_M)]
        tasted_AZ = self.taste + self.chain * (place_AZ < 0)
        likelihood_AGZ = (
            self.noise + self.preference_VGZ[item_A] * tasted_AZ[:, None, :] + self.chain * chain_AZ[:, None, :]
        )
        joint_AGZ = self.weight_BGZ[rows] * likelihood_AGZ
        for at, row in enumerate(rows):
            if int(row) in self.hidden:
                joint_AGZ[at] = self._joint_after_unknown(int(row), int(item_A[at]))
        self.weight_BGZ[rows] = joint_AGZ / joint_AGZ.sum(axis=(1, 2), keepdims=True)
        self.before_B[rows] = item_A

    def _place_before(self, rows: Ints) -> Ints:
        """Where the item before stands in each intent's cycle, [rows, Z]; -1 where it does not or is not known."""
        before_A = self.before_B[rows]
        place_AZ: Ints = np.where(before_A[:, None] >= 0, self.process.position_VZ[before_A], -1)
        return place_AZ

    def _follow(self, place_ZM: Floats) -> Floats:
        """Move weights of places, last axis M, along the cycles by the law of the chain's steps."""
        followed_ZM = np.zeros_like(place_ZM)
        for step, share in self.steps:
            followed_ZM += share * np.roll(place_ZM, step, axis=-1)
        return followed_ZM

    def _observe_unknown(self, row: int) -> None:
        weight_GZ = self.weight_BGZ[row]
        before_GZM = self.hidden.get(row)
        if before_GZM is None:
            before_GZM = np.zeros_like(self.process.preference_GZM)
            place_Z = self._place_before(np.array([row]))[0]
            inside_Z = np.flatnonzero(place_Z >= 0)
            before_GZM[:, inside_Z, place_Z[inside_Z]] = weight_GZ[:, inside_Z]
        tasted_GZ = (self.taste + self.chain) * weight_GZ - self.chain * before_GZM.sum(axis=2)
        self.hidden[row] = (
            self.noise * weight_GZ[:, :, None]
            + tasted_GZ[:, :, None] * self.process.preference_GZM
            + self.chain * self._follow(before_GZM)
        )
        self.before_B[row] = UNKNOWN

    def _joint_after_unknown(self, row: int, item: int) -> Floats:
        """Weight of (taste, intent) times the likelihood of `item`, the unknown item before it summed out."""
        hidden_GZM, weight_GZ = self.hidden.pop(row), self.weight_BGZ[row]
        tasted_GZ = (self.taste + self.chain) * weight_GZ - self.chain * hidden_GZM.sum(axis=2)
        joint_GZ: Floats = self.noise * weight_GZ + self.preference_VGZ[item] * tasted_GZ
        place_Z = self.process.position_VZ[item]
        inside_Z = np.flatnonzero(place_Z >= 0)
        for step, share in self.steps:
            came_from_Z = (place_Z[inside_Z] - step) % len(self.step_share_M)
            joint_GZ[:, inside_Z] += self.chain * share * hidden_GZM[:, inside_Z, came_from_Z]
        return joint_GZ


def _recall_and_mrr(ranks: Ints, num_targets: int, k: int) -> tuple[float, float]:
    if not num_targets:
        return float("nan"), float("nan")
    hits = ranks[ranks <= k]
    return len(hits) / num_targets, float((1 / hits).sum()) / num_targets
