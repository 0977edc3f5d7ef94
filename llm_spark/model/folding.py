"""Sessions into the past: what a part of a history leaves behind, so that the rest can go on from it in another batch.

A history may be of any length: it is folded some whole sessions of each row at a time, and memory is bounded by that.

Shape suffixes: B rows, R rows of one round, N tokens, M memory.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from llm_spark.model.history import HistoryBatch
from llm_spark.model.network import NextEventModel
from llm_spark.model.past import Past


def folded(model: NextEventModel, batch: HistoryBatch, num_sessions_B: Tensor, max_tokens: int) -> HistoryBatch:
    """The rest of the histories, once the first so many sessions of each row are part of its past.

    At most `max_tokens` events of a row are walked through at a time, but always a whole session. The batch lies on the host.
    """
    past = batch.past or model.newcomers(batch.num_rows)
    first_session_B = batch.first_session_B[:-1]
    done_B = torch.zeros_like(num_sessions_B)
    while len(row_R := (done_B < num_sessions_B).nonzero().squeeze(1)):
        here_R = first_session_B[row_R] + done_B[row_R]
        limit_R = batch.session_offsets[here_R] + max_tokens
        next_R = torch.searchsorted(batch.session_offsets, limit_R, right=True) - 1
        end_R = next_R.maximum(here_R + 1).minimum(first_session_B[row_R] + num_sessions_B[row_R])
        last_R = end_R - first_session_B[row_R]
        part = dataclasses.replace(batch, past=past).sessions(row_R, done_B[row_R], last_R)
        past = past.with_rows(row_R, past_after(model, part))
        done_B[row_R] = last_R
    every_B = torch.arange(batch.num_rows)
    return dataclasses.replace(batch, past=past).sessions(every_B, done_B, batch.first_session_B.diff())


def past_after(model: NextEventModel, batch: HistoryBatch) -> Past:
    """What the rows' sessions, and what came before them, leave behind. A row without tokens keeps its past."""
    before = batch.past or model.newcomers(batch.num_rows)
    filled_B = batch.row_offsets.diff() > 0
    begin_B, last_B = batch.row_offsets[:-1][filled_B], batch.row_offsets[1:][filled_B] - 1
    row_N = torch.repeat_interleave(torch.arange(batch.num_rows), batch.row_offsets.diff())
    first_B, previous_B, latest_B = (
        times_B.clone() for times_B in (before.first_time_B, before.previous_time_B, before.latest_time_B)
    )
    began_B = batch.event_times_N[begin_B]
    is_known_B = before.is_known_B[filled_B]
    first_B[filled_B] = torch.where(is_known_B, first_B[filled_B], began_B)
    latest_B[filled_B] = torch.where(is_known_B, latest_B[filled_B], began_B)
    np.maximum.at(latest_B.numpy(), row_N.numpy(), batch.event_times_N.numpy())
    previous_B[filled_B] = batch.event_times_N[last_B]
    return Past(
        memory_BM=model.memory(batch),
        num_sessions_B=before.num_sessions_B + batch.first_session_B.diff(),
        first_time_B=first_B,
        previous_time_B=previous_B,
        latest_time_B=latest_B,
        spent_B=before.spent_B.index_add(0, row_N, batch.values_N.cpu().double().nan_to_num(0.0, 0.0, 0.0)),
    )
