"""From an explanation to the few past items that speak most for each recommended one.

Shape suffixes: B rows, K explained items of a row, N events, G pairs of row and past item, Q most past items of a row,
R reasons, M recommendations.
"""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from llm_spark.model.explain import Explanation
from llm_spark.model.history import HistoryBatch
from llm_spark.tokens import FIRST_ITEM_TOKEN

MIN_WEIGHT = 1e-3
"""Less than this is no reason: it is a tenth of a per cent of the odds, and near what rounding leaves."""

REASONS_TYPE = pa.list_(pa.struct([("token", pa.int32()), ("weight", pa.float32())]))


def strongest_reasons(
    explanation: Explanation, batch: HistoryBatch, num_tokens: int, num_reasons: int
) -> tuple[Tensor, Tensor]:
    """The past items that raised each explained item's score most, strongest first: tokens and weights, both [B, K, R].

    Events of one item count together. Where fewer than `num_reasons` raised the score, the last weights are 0. Unknown
    events have no name to give: they are never reasons, though they have their weights.
    """
    tokens_N = batch.tokens_N.cpu()
    is_named_N = (tokens_N >= FIRST_ITEM_TOKEN) & (tokens_N < num_tokens)
    row_N = torch.repeat_interleave(torch.arange(batch.num_rows), batch.row_offsets.diff())[is_named_N]
    pair_G, group_N = torch.unique(row_N * num_tokens + tokens_N[is_named_N], return_inverse=True)
    row_G, token_G = pair_G // num_tokens, pair_G % num_tokens
    num_items = explanation.weight_NK.shape[1]
    weight_GK = torch.zeros(len(pair_G), num_items).index_add_(0, group_N, explanation.weight_NK[is_named_N])
    weight_GK[weight_GK < MIN_WEIGHT] = 0

    num_past_B = torch.bincount(row_G, minlength=batch.num_rows)
    place_G = torch.arange(len(pair_G)) - (num_past_B.cumsum(0) - num_past_B)[row_G]
    shape = batch.num_rows, int(num_past_B.max()) if batch.num_rows else 0
    token_BQ, weight_BQK = torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, num_items)
    token_BQ[row_G, place_G], weight_BQK[row_G, place_G] = token_G, weight_GK
    weight_BKR, place_BKR = weight_BQK.transpose(1, 2).topk(min(num_reasons, shape[1]), dim=2)
    return token_BQ[:, None].expand(-1, num_items, -1).gather(2, place_BKR), weight_BKR


def reason_columns(
    explanation: Explanation, batch: HistoryBatch, num_tokens: int, num_reasons: int, is_listed_BL: Tensor
) -> tuple[pa.Array, pa.Array]:
    """The columns `reasons` and `memory_weight` of the recommendations: lists of L places, of which the first K are explained.

    One entry for each place that `is_listed_BL` marks, row by row; null where it is not explained.
    """
    token_BKR, weight_BKR = strongest_reasons(explanation, batch, num_tokens, num_reasons)
    num_places, num_items = is_listed_BL.shape[1], token_BKR.shape[1]
    is_explained_M = (torch.arange(num_places) < num_items).expand_as(is_listed_BL)[is_listed_BL]

    def of_listed(values_BK: Tensor) -> Tensor:
        padding = (0, 0) * (values_BK.dim() - 2) + (0, num_places - num_items)
        return F.pad(values_BK, padding)[is_listed_BL]

    token_MR, weight_MR = of_listed(token_BKR), of_listed(weight_BKR)
    given_MR = weight_MR > 0
    fields = [pa.array(token_MR[given_MR].numpy(), pa.int32()), pa.array(weight_MR[given_MR].numpy(), pa.float32())]
    offsets = pa.array(F.pad(given_MR.sum(dim=1).cumsum(0), (1, 0)).numpy(), pa.int32())
    structs = pa.StructArray.from_arrays(fields, fields=list(REASONS_TYPE.value_type))
    is_null = ~is_explained_M.numpy()
    reasons = pa.ListArray.from_arrays(offsets, structs, mask=pa.array(is_null))
    return reasons, pa.array(of_listed(explanation.memory_BK).numpy(), pa.float32(), mask=is_null)


def no_reasons(num_recommendations: int) -> tuple[pa.Array, pa.Array]:
    """The same columns where nothing is explained."""
    return pa.nulls(num_recommendations, REASONS_TYPE), pa.nulls(num_recommendations, pa.float32())
