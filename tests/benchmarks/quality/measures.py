"""Ranks over the whole vocabulary and what is made of them.

A rank counts every item that scores as high as the target or higher (1 is best, ties count against us); 0 means that
the target is no item of the vocabulary: a miss at every k.

Shape suffixes: P predicted positions, B rows, D context, V vocabulary rows, U users, R resamples.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llm_spark.model.losses import is_item
from llm_spark.model.network import NextEventModel
from tests.benchmarks.quality.histories import Histories, Ints

NUM_RESAMPLES = 2000

Floats = NDArray[np.float64]


@torch.inference_mode()
def model_ranks(
    model: NextEventModel, histories: Histories, batch_rows: int, filter_seen: bool = False
) -> tuple[Ints, Ints]:
    """Rank of every target, and the row that it stands in. `filter_seen`: items of the row before its first target are
    no candidates (unless they are the target itself).
    """
    model.eval()
    ranks, rows = [], []
    for rows_K, batch in histories.batches(batch_rows):
        contexts_PD, targets_P = model.forward_states(batch)
        num_targets_K = (batch.row_offsets.diff() - batch.first_target_B).clamp(min=0)
        row_P = torch.repeat_interleave(torch.arange(len(rows_K)), num_targets_K)
        for chunk in torch.arange(len(targets_P)).split(256):
            logits_CV = model.logits(contexts_PD[chunk])
            target_C1 = logits_CV.gather(1, targets_P[chunk, None])
            if filter_seen:
                for place, row in enumerate(row_P[chunk].tolist()):
                    first = int(batch.row_offsets[row])
                    logits_CV[place, batch.tokens_N[first : first + int(batch.first_target_B[row])]] = -torch.inf
                logits_CV.scatter_(1, targets_P[chunk, None], target_C1)
            ranks.append((logits_CV >= target_C1).sum(dim=1) * is_item(targets_P[chunk]))
        rows.append(torch.from_numpy(rows_K)[row_P])
    return torch.cat(ranks).numpy(), torch.cat(rows).numpy()


def score_ranks(score_PV: Floats, target_P: Ints) -> Ints:
    """Ranks from a table of scores, one row a position; a negative target is none of the columns."""
    known_P = target_P >= 0
    target_score_P = np.take_along_axis(score_PV, np.maximum(target_P, 0)[:, None], axis=1)
    ranks_P: Ints = (score_PV >= target_score_P).sum(axis=1) * known_P
    return ranks_P


def recall(ranks_P: Ints, k: int) -> Floats:
    """1 where the target is among the first k, else 0; the mean over positions is recall@k, also called HR@k."""
    gains_P: Floats = ((ranks_P > 0) & (ranks_P <= k)).astype(np.float64)
    return gains_P


def mrr(ranks_P: Ints, k: int) -> Floats:
    """1/rank within the first k, else 0."""
    return recall(ranks_P, k) / np.maximum(ranks_P, 1)


def ndcg(ranks_P: Ints, k: int) -> Floats:
    """1/log2(1+rank) within the first k, else 0 (one relevant item a position: Jarvelin and Kekalainen 2002)."""
    return recall(ranks_P, k) / np.log2(np.maximum(ranks_P, 1) + 1.0)


def bootstrap_interval(gains_P: Floats, user_P: Ints, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over positions, users drawn with replacement, each with all of its positions."""
    _, user_P = np.unique(user_P, return_inverse=True)
    total_U = np.bincount(user_P, gains_P)
    count_U = np.bincount(user_P).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(NUM_RESAMPLES)
    for resample in range(NUM_RESAMPLES):
        weight_U = np.bincount(rng.integers(len(total_U), size=len(total_U)), minlength=len(total_U))
        means[resample] = (weight_U @ total_U) / (weight_U @ count_U)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
