"""How well outcomes are foretold, in one pass over the moments, without Spark: parts of the moments -> histograms that add up.

`partial_histograms` counts a part of the moments by bins of the prediction, once as they are and once in each bootstrap replicate
(evaluation/bootstrap.py: users are what is drawn); `merged_metrics` adds such parts and takes the metrics of the sum. Both are for
`mapInArrow`; what leaves a part does not grow with its moments. Moments in one bin are tied, which costs the area under the curve less
than .001.

Of a probability, with moments ordered by it from high to low:
- auc: the chance that a moment that came about stands above one that did not, ties counted half (Fawcett 2006);
- average_precision: the precision at each moment that came about, averaged over these, the moments of a bin in random order;
- brier: mean squared difference of probability and label (Brier 1950); brier_skill: 1 - brier / that of foretelling the mean of the labels;
- calibration_error: mean |share that came about - mean probability| over ten bins of equal width, weighted by their moments (Guo et al. 2017);
- of each tenth of the moments, the likeliest first: lift (its share that came about over that of all), gain (share of all that came
  about found up to and with this tenth).
Of an amount: mean_error_log and squared_error_log of log(1 + amount), and lift and gain counting the amount instead.

Shape suffixes: L moments, U users, R replicates (the first one counts everybody once), H bins, Q quantities, T tenths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm_spark.evaluation.bootstrap import poisson_weights

NUM_BINS = 1024
_LARGEST_LOGIT = 16.0
_LARGEST_LOG_AMOUNT = 16.0
_MOMENTS_AT_A_TIME = 4096
NUM_TENTHS = 10
_QUANTITIES = ("moments", "outcome", "prediction", "error", "squared_error")
"""Summed in each bin: how many moments; label or amount; probability or log amount; its difference to the label and the square of that."""

HISTOGRAMS_DDL = "outcome string, recommender string, replicate int, only_user long, sums array<double>"
METRICS_DDL = "outcome string, recommender string, replicate int, only_user long, moments long, tenth int, name string, value double"
_HISTOGRAMS_SCHEMA = pa.schema(
    [
        ("outcome", pa.string()),
        ("recommender", pa.string()),
        ("replicate", pa.int32()),
        ("only_user", pa.int64()),
        ("sums", pa.list_(pa.float64())),
    ]
)
_METRICS_SCHEMA = pa.schema(
    [
        ("outcome", pa.string()),
        ("recommender", pa.string()),
        ("replicate", pa.int32()),
        ("only_user", pa.int64()),
        ("moments", pa.int64()),
        ("tenth", pa.int32()),
        ("name", pa.string()),
        ("value", pa.float64()),
    ]
)

Floats = NDArray[np.float64]


def partial_histograms(
    batches: Iterator[pa.RecordBatch], amounts: frozenset[str], num_replicates: int
) -> Iterator[pa.RecordBatch]:
    """In: outcome, recommender, user_hash, label, prediction (LABELLED_MOMENTS_DDL's), one row a moment. Out (HISTOGRAMS_DDL): for each
    outcome and recommender one row a replicate, replicate 0 counting everybody once. `amounts` are the outcomes that are amounts.

    `only_user` is the hash of the user where all moments are of one, null where they are of several: what an interval needs to know.
    """
    sums: dict[tuple[str, str], Floats] = {}
    users: dict[tuple[str, str], tuple[int, int]] = {}
    for batch in batches:
        names = list(zip(batch.column("outcome").to_pylist(), batch.column("recommender").to_pylist(), strict=True))
        user_L = batch.column("user_hash").to_numpy(zero_copy_only=False)
        label_L, prediction_L = (
            batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in ("label", "prediction")
        )
        key_of = {key: number for number, key in enumerate(sorted(set(names)))}
        number_L = np.array([key_of[name] for name in names])
        for key, number in key_of.items():
            chosen = number_L == number
            mine = user_L[chosen]
            low, high = users.get(key, (mine[0], mine[0]))
            users[key] = min(low, mine.min()), max(high, mine.max())
            found = sums.setdefault(key, np.zeros((1 + num_replicates, NUM_BINS, len(_QUANTITIES))))
            _add(found, mine, label_L[chosen], prediction_L[chosen], key[0] in amounts)
    for (outcome, recommender), sums_RHQ in sums.items():
        low, high = users[outcome, recommender]
        count = len(sums_RHQ)
        flat = pa.array(sums_RHQ.reshape(-1))
        offsets = np.arange(count + 1, dtype=np.int32) * (NUM_BINS * len(_QUANTITIES))
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([outcome] * count, pa.string()),
                pa.array([recommender] * count, pa.string()),
                pa.array(np.arange(count), pa.int32()),
                pa.array([int(low) if low == high else None] * count, pa.int64()),
                pa.ListArray.from_arrays(pa.array(offsets), flat),
            ],
            schema=_HISTOGRAMS_SCHEMA,
        )


def _add(sums_RHQ: Floats, user_L: Any, label_L: Floats, prediction_L: Floats, is_amount: bool) -> None:
    """Add these moments, some at a time, to every replicate's sums."""
    for first in range(0, len(user_L), _MOMENTS_AT_A_TIME):
        part = slice(first, first + _MOMENTS_AT_A_TIME)
        quantities_LQ = _quantities(label_L[part], prediction_L[part], is_amount)
        bin_L = _bins(prediction_L[part], is_amount)
        users_U, place_L = np.unique(user_L[part], return_inverse=True)
        weights_UR = np.ones((len(users_U), len(sums_RHQ)))
        weights_UR[:, 1:] = poisson_weights(users_U, len(sums_RHQ) - 1)
        order = np.argsort(bin_L, kind="stable")
        bins_B, starts_B = np.unique(bin_L[order], return_index=True)
        weights_LR = weights_UR[place_L[order]]
        for quantity in range(quantities_LQ.shape[1]):
            weighted_LR = weights_LR * quantities_LQ[order, quantity, None]
            sums_RHQ[:, bins_B, quantity] += np.add.reduceat(weighted_LR, starts_B, axis=0).T


def _quantities(label_L: Floats, prediction_L: Floats, is_amount: bool) -> Floats:
    told_L = prediction_L if is_amount else 1 / (1 + np.exp(-prediction_L))
    error_L = told_L - label_L
    counted_L = np.expm1(label_L) if is_amount else label_L
    return np.stack([np.ones_like(label_L), counted_L, told_L, error_L, np.square(error_L)], axis=1)


def _bins(prediction_L: Floats, is_amount: bool) -> NDArray[np.int64]:
    share_L = prediction_L / _LARGEST_LOG_AMOUNT if is_amount else 0.5 + prediction_L / (2 * _LARGEST_LOGIT)
    return np.clip(np.floor(share_L * NUM_BINS), 0, NUM_BINS - 1).astype(np.int64)


def merged_metrics(batches: Iterator[pa.RecordBatch], amounts: frozenset[str]) -> Iterator[pa.RecordBatch]:
    """Parts of whole replicates (HISTOGRAMS_DDL), in any order -> their metrics (METRICS_DDL); `tenth` is 0 for those of all moments."""
    merged: dict[tuple[str, str, int], Floats] = {}
    users: dict[tuple[str, str, int], set[int | None]] = {}
    for batch in batches:
        for row in range(batch.num_rows):
            key = tuple(batch.column(name)[row].as_py() for name in ("outcome", "recommender", "replicate"))
            values = batch.column("sums")[row].values.to_numpy().reshape(NUM_BINS, len(_QUANTITIES))
            merged[key] = merged[key] + values if key in merged else values
            users.setdefault(key, set()).add(batch.column("only_user")[row].as_py())
    rows = []
    for key in sorted(merged):
        only_user = next(iter(users[key])) if len(users[key]) == 1 else None
        told = amount_metrics(merged[key]) if key[0] in amounts else probability_metrics(merged[key])
        num_moments = round(merged[key][:, 0].sum())
        rows += [(*key, only_user, num_moments, tenth, name, value) for (tenth, name), value in told.items()]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_METRICS_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _METRICS_SCHEMA, strict=True)]
    yield pa.RecordBatch.from_arrays(arrays, schema=_METRICS_SCHEMA)


def probability_metrics(sums_HQ: Floats) -> dict[tuple[int, str], float]:
    """(tenth, name) -> value, from the sums of each bin in rising order; a metric that is not defined is left out."""
    moments_H, came_H, probability_H = sums_HQ[:, 0], sums_HQ[:, 1], sums_HQ[:, 2]
    num_moments, num_came = moments_H.sum(), came_H.sum()
    if not num_moments:
        return {}
    share = num_came / num_moments
    brier = sums_HQ[:, 4].sum() / num_moments
    found = {"share": share, "mean_probability": probability_H.sum() / num_moments, "brier": brier}
    # By equal widths of the mean probability of each bin, not of its logit.
    mean_H = probability_H / np.maximum(moments_H, 1e-300)
    tenth_H = np.clip((mean_H * 10).astype(int), 0, 9)
    apart = np.zeros(10)
    np.add.at(apart, tenth_H, came_H - probability_H)
    found["calibration_error"] = np.abs(apart).sum() / num_moments
    if 0 < num_came < num_moments:
        found["brier_skill"] = 1 - brier / (share * (1 - share))
        missed_H = moments_H - came_H
        found["auc"] = (came_H * (missed_H.cumsum() - missed_H / 2)).sum() / (num_came * missed_H.sum())
        # A bin's moments in random order: on average half of the others of the bin stand above each.
        listed_H = moments_H[::-1].cumsum() - moments_H[::-1] / 2
        found_H = came_H[::-1].cumsum() - came_H[::-1] / 2
        precision_H = found_H / np.maximum(listed_H, 1e-300)
        found["average_precision"] = (came_H[::-1] * precision_H).sum() / num_came
    return {(0, name): float(value) for name, value in found.items()} | _by_tenth(moments_H, came_H)


def amount_metrics(sums_HQ: Floats) -> dict[tuple[int, str], float]:
    """Likewise of an amount."""
    moments_H, amount_H = sums_HQ[:, 0], sums_HQ[:, 1]
    num_moments = moments_H.sum()
    if not num_moments:
        return {}
    found = {
        "mean_amount": amount_H.sum() / num_moments,
        "mean_error_log": sums_HQ[:, 3].sum() / num_moments,
        "squared_error_log": sums_HQ[:, 4].sum() / num_moments,
    }
    return {(0, name): float(value) for name, value in found.items()} | _by_tenth(moments_H, amount_H)


def _by_tenth(moments_H: Floats, counted_H: Floats) -> dict[tuple[int, str], float]:
    """Lift and gain of each tenth of the moments, those with the highest predictions first; a bin on a bound is shared in proportion."""
    total = counted_H.sum()
    if not total:
        return {}
    reached_H = np.concatenate([[0.0], moments_H[::-1].cumsum()])
    counted = np.concatenate([[0.0], counted_H[::-1].cumsum()])
    bounds_T = np.linspace(0, reached_H[-1], NUM_TENTHS + 1)
    rising = np.concatenate([[True], np.diff(reached_H) > 0])  # empty bins add nothing to interpolate between
    gains_T = np.interp(bounds_T, reached_H[rising], counted[rising]) / total
    found = {}
    for tenth in range(1, NUM_TENTHS + 1):
        found[tenth, "gain"] = float(gains_T[tenth])
        found[tenth, "lift"] = float((gains_T[tenth] - gains_T[tenth - 1]) * NUM_TENTHS)
    return found
