"""The kernel of a night: users' new steps and their states of the last night in, recommendations and new states out.

    tails.mapInArrow(functools.partial(advance, artifact_path=path, model_id=model_id, ...), ADVANCE_DDL)

A user who has no state yet is replayed: his whole history is new. Both give the same (see tests/scoring/test_advance.py).

Shape suffixes: B rows, N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from llm_spark.model.folding import folded
from llm_spark.model.history import HistoryBatch, stretches
from llm_spark.scoring.histories import history_batch, like_shaped_slices, list_column, list_offsets, list_values
from llm_spark.scoring.kernels import RECOMMEND_DDL, RECOMMEND_SCHEMA, loaded_model, recommended
from llm_spark.scoring.offers import Offers, RecentEvents
from llm_spark.scoring.states import STATE_DDL, STATE_SCHEMA, KeptState, state_columns, window_begin

ADVANCE_DDL = f"{RECOMMEND_DDL}, {STATE_DDL}"
_ADVANCE_SCHEMA = pa.schema([*RECOMMEND_SCHEMA, *STATE_SCHEMA])


def advance(
    batches: Iterator[pa.RecordBatch],
    artifact_path: str,
    model_id: str,
    offers: Offers,
    batch_rows: int,
    max_tokens: int,
    fills_from_the_past: bool,
    num_reasons: int = 0,
    num_explained: int = 1,
) -> Iterator[pa.RecordBatch]:
    """Each user's k most probable next items, as `recommend` gives them, and one more row a user, without a rank: his new state.

    In: the columns of `recommend`, of all whole sessions since the state's past; session_ids and sessions_ended_at, session by session; and where
    there are states their memory, past, earlier_tokens, earlier_event_types and model_id, all null for a newcomer. The
    `offers` go by a user's newest `max_tokens` events; as many are walked through at a time. With
    `fills_from_the_past` a missing value is the last one before. Raises UserError for the state of another model than `model_id`.
    """
    loaded = loaded_model(artifact_path)
    model = loaded.model
    for batch in batches:
        for rows in like_shaped_slices(batch, batch_rows):
            kept = KeptState.of_rows(rows, model, model_id)
            tails = dataclasses.replace(history_batch(rows, len(model.config.features)), past=kept.past)
            if fills_from_the_past:
                tails = _filled(tails, kept.last_value_B)
            num_folded_B = window_begin(tails, max_tokens if num_reasons else 0)
            with torch.inference_mode():
                windows = folded(model, tails, num_folded_B, max_tokens)
            states = state_columns(rows, kept, tails, windows, num_folded_B, max_tokens)
            recent = _newest(states, max_tokens)
            lists = recommended(loaded, rows, windows, recent, offers, num_reasons, num_explained)
            yield _side_by_side(lists, None, lists.num_rows)
            yield _side_by_side(rows.select(["user_id"]), states, rows.num_rows)


def _filled(tails: HistoryBatch, last_value_B: np.ndarray) -> HistoryBatch:
    """What is still missing has no known value before it in its row."""
    before_N = torch.repeat_interleave(torch.from_numpy(last_value_B), tails.row_offsets.diff())
    return dataclasses.replace(tails, values_N=torch.where(tails.values_N.isnan(), before_N, tails.values_N))


def _newest(states: pa.RecordBatch, max_tokens: int) -> RecentEvents:
    """Each user's newest `max_tokens` events: those of the window, and before them as many as the state has kept."""
    parts = [(list_column(states, f"earlier_{name}"), list_column(states, name)) for name in ("tokens", "event_types")]
    earlier, window = (list_offsets(lists) for lists in parts[0])
    first_B = torch.maximum(window[:-1], window[1:] - max_tokens)
    shift = int(earlier[-1])
    begins = torch.stack([earlier[:-1], shift + first_B], dim=1).flatten()
    ends = torch.stack([earlier[1:], shift + window[1:]], dim=1).flatten()
    newest_N = stretches(begins, ends)
    num_B = earlier.diff() + window[1:] - first_B
    tokens_N, event_types_N = (
        torch.cat([list_values(before, np.int64), list_values(kept, np.int64)])[newest_N] for before, kept in parts
    )
    return RecentEvents(torch.repeat_interleave(torch.arange(states.num_rows), num_B), event_types_N, tokens_N)


def _side_by_side(lists: pa.RecordBatch, states: pa.RecordBatch | None, num_rows: int) -> pa.RecordBatch:
    """Columns that neither of them has are null."""
    columns = []
    for field in _ADVANCE_SCHEMA:
        of = next((part for part in (lists, states) if part is not None and field.name in part.schema.names), None)
        columns.append(pa.nulls(num_rows, field.type) if of is None else of.column(field.name))
    return pa.RecordBatch.from_arrays(columns, schema=_ADVANCE_SCHEMA)
