"""Every metric of one recommender in one pass over its ranked positions, without Spark: parts of the positions -> sums that add up.

`partial_sums` reduces a part of the positions to the sums of each slice under each bootstrap replicate, and to which group of users was
recommended which item; `merged_sums` adds such parts. Both are for `mapInArrow`. What leaves a part does not grow with its positions.

A metric is one sum over another, both taken inside each replicate. Every gain is rounded to a multiple of 2^-24, so that sums of up to
half a thousand million of them (for the information in bits, 20 million items) are exact in float64: whatever the split into parts and
their order, the result is the same to the bit.

Shape suffixes: P positions, U users, R replicates (the first one counts everybody once), C columns, D dimensions, Q pairs of slice and
user, K list length, V tokens, G groups of users, N listed items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llm_spark.evaluation.bootstrap import NUM_GROUPS, SEED, poisson_weights, user_groups
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.slices import confidence_bins, slices_of
from llm_spark.tokens import FIRST_ITEM_TOKEN

SUMS_DDL = "slice int, content binary"
_SUMS_SCHEMA = pa.schema([("slice", pa.int32()), ("content", pa.binary())])
LISTED = -1
"""In place of a slice's number: the content is which items were recommended."""

_QUANTUM = 2.0**-24
_USERS_AT_A_TIME = 512
_NEVER = 255

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """A mean: the sum of the column `gain` over the sum of the column `per`."""

    name: str
    gain: str
    per: str


@dataclass(frozen=True)
class MetricRules:
    """What is measured, and how it is resampled."""

    ks: tuple[int, ...]
    """Ascending."""
    items: Items
    num_replicates: int
    seed: int = SEED

    def __post_init__(self) -> None:
        if list(self.ks) != sorted(set(self.ks)) or not self.ks or len(self.ks) >= _NEVER:
            raise ValueError(f"ks must be distinct and ascending, not {list(self.ks)}")

    @property
    def list_length(self) -> int:
        return self.ks[-1]

    @property
    def rank_metrics(self) -> tuple[Metric, ...]:
        """Given for every slice: means over positions."""
        names = ["accuracy", *(f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in self.ks)]
        return (*(Metric(name, name, "positions") for name in names), Metric("confidence", "confidence", "answers"))

    @property
    def list_metrics(self) -> tuple[Metric, ...]:
        """Given for all positions only: means over sessions, over recommended items, or over lists."""
        kinds = [("hit_rate", "sessions"), ("novelty", "listed@{k}"), ("popularity_bias", "listed@{k}")]
        if self.items.category_V is not None:
            kinds.append(("diversity", "comparable@{k}"))
        return tuple(Metric(f"{name}@{k}", f"{name}@{k}", per.format(k=k)) for name, per in kinds for k in self.ks)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (*self.rank_metrics, *self.list_metrics)

    def columns(self, slice_number: int) -> tuple[str, ...]:
        """The names of the sums of a slice, in their order: those over all positions begin with those of every slice."""
        metrics = self.rank_metrics if slice_number else self.metrics
        return tuple(dict.fromkeys(name for metric in metrics for name in (metric.per, metric.gain)))


@dataclass
class SliceSums:
    """Sums [R, C] of a slice, and the smallest and the largest hash of its users: equal where it holds one user alone."""

    first_user: int
    last_user: int
    sums_RC: Floats

    @classmethod
    def empty(cls, rules: MetricRules, slice_number: int) -> SliceSums:
        limits = np.iinfo(np.int64)
        shape = (1 + rules.num_replicates, len(rules.columns(slice_number)))
        return cls(int(limits.max), int(limits.min), np.zeros(shape))

    def add(self, other: SliceSums) -> None:
        self.first_user = min(self.first_user, other.first_user)
        self.last_user = max(self.last_user, other.last_user)
        self.sums_RC += other.sums_RC

    def to_bytes(self) -> bytes:
        return np.array([self.first_user, self.last_user], "<i8").tobytes() + self.sums_RC.astype("<f8").tobytes()

    @classmethod
    def of_bytes(cls, content: bytes, rules: MetricRules, slice_number: int) -> SliceSums:
        first_user, last_user = np.frombuffer(content, "<i8", 2)
        sums = np.frombuffer(content, "<f8", offset=16).reshape(-1, len(rules.columns(slice_number)))
        return cls(int(first_user), int(last_user), sums)


@dataclass
class ListedItems:
    """For each item and group of users [V, G] the number of the smallest of the ks within which it was recommended; 255: within none."""

    within_VG: NDArray[np.uint8]

    @classmethod
    def empty(cls, rules: MetricRules) -> ListedItems:
        return cls(np.full((rules.items.num_tokens, NUM_GROUPS), _NEVER, np.uint8))

    def note(self, rules: MetricRules, tokens_PK: Ints, group_P: Ints) -> None:
        for number, (begin, end) in enumerate(zip((0, *rules.ks[:-1]), rules.ks, strict=True)):
            listed_N = tokens_PK[:, begin:end].ravel()
            group_N = np.repeat(group_P, tokens_PK[:, begin:end].shape[1])
            is_item = listed_N >= FIRST_ITEM_TOKEN
            np.minimum.at(self.within_VG, (listed_N[is_item], group_N[is_item]), np.uint8(number))

    def to_bytes(self) -> bytes:
        """Only the rows of items that were recommended."""
        tokens = np.flatnonzero((self.within_VG != _NEVER).any(axis=1))
        return np.int64(len(tokens)).tobytes() + tokens.astype("<i8").tobytes() + self.within_VG[tokens].tobytes()

    def add_bytes(self, content: bytes) -> None:
        num_tokens = int(np.frombuffer(content, "<i8", 1)[0])
        tokens = np.frombuffer(content, "<i8", num_tokens, offset=8)
        rows = np.frombuffer(content, np.uint8, offset=8 + 8 * num_tokens).reshape(num_tokens, NUM_GROUPS)
        self.within_VG[tokens] = np.minimum(self.within_VG[tokens], rows)

    def num_covered(self, num_ks: int) -> Ints:
        """For each k: how many items were recommended, then how many would be without each group [len(ks), 1 + G]."""
        counts = np.empty((num_ks, 1 + NUM_GROUPS), np.int64)
        for number in range(num_ks):
            covered_VG = self.within_VG <= number
            num_groups_V = covered_VG.sum(axis=1)
            counts[number, 0] = (num_groups_V > 0).sum()
            counts[number, 1:] = counts[number, 0] - covered_VG[num_groups_V == 1].sum(axis=0)
        return counts


def rank_gains(rank_P: Ints, ks: Sequence[int]) -> dict[str, Floats]:
    """Each ranking metric's contribution of every position; rank 0 stands for an item that no list can hold.

    One item is relevant at a position, so recall@k is 1 or 0, MRR@k the reciprocal rank within k, and NDCG@k = 1 / log2(1 + rank) within
    k (Jarvelin and Kekalainen 2002).
    """
    known = rank_P > 0
    rank = np.where(known, rank_P, 1).astype(np.float64)
    gains = {"accuracy": (known & (rank_P == 1)).astype(np.float64)}
    for k in ks:
        within = (known & (rank_P <= k)).astype(np.float64)
        gains |= {f"recall@{k}": within, f"mrr@{k}": within / rank, f"ndcg@{k}": within / np.log2(1 + rank)}
    return gains


def list_gains(tokens_PK: Ints, target_P: Ints, items: Items, ks: Sequence[int]) -> dict[str, Floats]:
    """Each list metric's contribution of every position, and what it is a mean over; token 0 fills lists up to the largest k.

    novelty@k is a mean over recommended items of -log2 of their share of the training targets (Zhou et al. 2010), popularity_bias@k of
    their popularity percentile less that of the item that came (0 where that has no token): above 0, more popular items are recommended
    than users choose (as the difference of group average popularities of Abdollahpouri et al. 2019, in percentiles). diversity@k is a mean
    over lists of the share of pairs of items whose categories differ (Smyth and McClave 2001), items without a category left out.
    """
    is_item_PK = tokens_PK >= FIRST_ITEM_TOKEN
    num_listed_PK = np.cumsum(is_item_PK, axis=1)
    bits_PK = np.cumsum(items.self_information_V[tokens_PK], axis=1)
    percentiles_PK = np.cumsum(items.percentile_V[tokens_PK], axis=1)
    differing_PK = _share_of_differing_pairs(items.category_V[tokens_PK]) if items.category_V is not None else None
    gains: dict[str, Floats] = {}
    for k in ks:
        last = k - 1
        num_listed = num_listed_PK[:, last].astype(np.float64)
        gains[f"listed@{k}"] = num_listed
        gains[f"novelty@{k}"] = bits_PK[:, last]
        gains[f"popularity_bias@{k}"] = percentiles_PK[:, last] - num_listed * items.percentile_V[target_P]
        if differing_PK is not None:
            share, comparable = differing_PK
            gains[f"comparable@{k}"] = comparable[:, last].astype(np.float64)
            gains[f"diversity@{k}"] = share[:, last]
    return gains


def _share_of_differing_pairs(category_PK: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """Among the first items of each list [P, K], the share of pairs of different category, and whether there is any pair."""
    known_PK = category_PK > 0
    alike_PK = np.zeros(category_PK.shape)
    for place in range(1, category_PK.shape[1]):
        same = (category_PK[:, :place] == category_PK[:, place : place + 1]) & known_PK[:, place : place + 1]
        alike_PK[:, place] = same.sum(axis=1)
    num_known_PK = np.cumsum(known_PK, axis=1)
    num_pairs_PK = num_known_PK * (num_known_PK - 1) / 2
    comparable_PK = num_pairs_PK > 0
    differing_PK = 1 - np.cumsum(alike_PK, axis=1) / np.maximum(num_pairs_PK, 1)
    return np.where(comparable_PK, differing_PK, 0.0), comparable_PK


def partial_sums(batches: Iterable[pa.RecordBatch], rules: MetricRules) -> Iterator[pa.RecordBatch]:
    """Rows (slice, content) of SUMS_DDL, one a slice that has positions, and one LISTED.

    In, one row a position: user_hash (bigint), rank (null: the item has no token), token, session_position, sessions_before,
    gap_seconds (null: not known), session_rank (on one row of each session the best rank of its positions, 0 where none has any;
    null on the others), top (list of tokens, best first), confidence (the probability of the first of these; null where none is said).
    """
    sums: dict[int, SliceSums] = {}
    listed = ListedItems.empty(rules)
    for batch in batches:
        if batch.num_rows:
            _add_positions(batch, rules, sums, listed)
    if sums:
        yield _sums_batch(sums, listed.to_bytes())


def merged_sums(batches: Iterable[pa.RecordBatch], rules: MetricRules) -> Iterator[pa.RecordBatch]:
    """Rows of `partial_sums` added up: one a slice, and for LISTED the numbers of covered items, as `ListedItems.num_covered` has them."""
    sums: dict[int, SliceSums] = {}
    listed = None
    for batch in batches:
        for number, content in zip(batch.column("slice").to_pylist(), batch.column("content"), strict=True):
            if number == LISTED:
                listed = listed or ListedItems.empty(rules)
                listed.add_bytes(content.as_py())
            else:
                part = SliceSums.of_bytes(content.as_py(), rules, number)
                sums.setdefault(number, SliceSums.empty(rules, number)).add(part)
    if sums or listed is not None:
        yield _sums_batch(sums, None if listed is None else listed.num_covered(len(rules.ks)).tobytes())


def _sums_batch(sums: dict[int, SliceSums], listed: bytes | None) -> pa.RecordBatch:
    rows = [(number, sums[number].to_bytes()) for number in sorted(sums)]
    rows += [(LISTED, listed)] if listed is not None else []
    numbers, contents = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(numbers, pa.int32()), pa.array(contents, pa.binary())], schema=_SUMS_SCHEMA
    )


def _add_positions(batch: pa.RecordBatch, rules: MetricRules, sums: dict[int, SliceSums], listed: ListedItems) -> None:
    by_user = np.argsort(_ints(batch, "user_hash", 0), kind="stable")
    batch = batch.take(pa.array(by_user))
    user_hash_P = _ints(batch, "user_hash", 0)
    target_P = _ints(batch, "token", 0)
    target_P = np.where(target_P < rules.items.num_tokens, target_P, 0)
    tokens_PK = _lists(batch, rules)
    listed.note(rules, tokens_PK, user_groups(user_hash_P))
    gains_PC = _gains(batch, rules, target_P, tokens_PK)
    slices_PD = slices_of(
        {name: _ints(batch, name, -1) for name in ("session_position", "sessions_before", "gap_seconds")}
        | {"popularity_decile": rules.items.decile_V[target_P], "confidence_bin": confidence_bins(_confidence(batch))}
    )
    user_hash_U, user_P = np.unique(user_hash_P, return_inverse=True)
    weights_UR = np.ones((len(user_hash_U), 1 + rules.num_replicates), np.uint8)
    weights_UR[:, 1:] = poisson_weights(user_hash_U, rules.num_replicates, rules.seed)
    for number in np.unique(np.append(slices_PD, 0)).tolist():
        inside = np.flatnonzero((slices_PD == number).any(axis=1)) if number else np.arange(batch.num_rows)
        part = sums.setdefault(number, SliceSums.empty(rules, number))
        part.first_user = min(part.first_user, int(user_hash_P[inside[0]]))
        part.last_user = max(part.last_user, int(user_hash_P[inside[-1]]))
        begins_Q = np.flatnonzero(np.diff(user_P[inside], prepend=-1))
        gains_QC = np.add.reduceat(gains_PC[inside, : part.sums_RC.shape[1]], begins_Q, axis=0)
        users_Q = user_P[inside][begins_Q]
        for first in range(0, len(users_Q), _USERS_AT_A_TIME):
            some = slice(first, first + _USERS_AT_A_TIME)
            part.sums_RC += weights_UR[users_Q[some]].T.astype(np.float64) @ gains_QC[some]


def _gains(batch: pa.RecordBatch, rules: MetricRules, target_P: Ints, tokens_PK: Ints) -> Floats:
    """Every column of the sums over all positions, position by position [P, C]."""
    session_rank_P = _ints(batch, "session_rank", -1)
    session_gains = rank_gains(np.maximum(session_rank_P, 0), rules.ks)
    gains = {
        "positions": np.ones(batch.num_rows),
        "answers": (~np.isnan(_confidence(batch))).astype(np.float64),
        "confidence": np.nan_to_num(_confidence(batch)),
        **rank_gains(_ints(batch, "rank", 0), rules.ks),
        "sessions": (session_rank_P >= 0).astype(np.float64),
        **{f"hit_rate@{k}": session_gains[f"recall@{k}"] for k in rules.ks},
        **list_gains(tokens_PK, target_P, rules.items, rules.ks),
    }
    return np.stack([np.rint(gains[name] / _QUANTUM) * _QUANTUM for name in rules.columns(0)], axis=1)


def _confidence(batch: pa.RecordBatch) -> Floats:
    """NaN where the recommender says no probability."""
    confidence: Floats = batch.column("confidence").cast(pa.float64()).to_numpy(zero_copy_only=False)
    return confidence


def _ints(batch: pa.RecordBatch, name: str, null: int) -> Ints:
    ints: Ints = batch.column(name).cast(pa.int64()).fill_null(null).to_numpy(zero_copy_only=False)
    return ints


def _lists(batch: pa.RecordBatch, rules: MetricRules) -> Ints:
    """The recommended tokens [P, K], filled up with 0."""
    column = batch.column("top")
    length_P = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    tokens_N = column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    if len(tokens_N) and tokens_N.max() >= rules.items.num_tokens:
        raise ValueError(
            f"token {tokens_N.max()} is recommended, and the vocabulary ends at {rules.items.num_tokens - 1}"
        )
    row_N = np.repeat(np.arange(batch.num_rows), length_P)
    place_N = np.arange(len(tokens_N)) - (np.cumsum(length_P) - length_P)[row_N]
    tokens_PK = np.zeros((batch.num_rows, rules.list_length), np.int64)
    short = place_N < rules.list_length
    tokens_PK[row_N[short], place_N[short]] = tokens_N[short]
    return tokens_PK
