"""From Arrow batches of the sequences table to the model's batches: bounded in rows, and of like shape inside.

Shape suffixes: B rows, N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from llm_spark.config.outcomes import OPENING_COLUMNS
from llm_spark.errors import DataError
from llm_spark.model.history import HistoryBatch
from llm_spark.model.outcomes import Moments
from llm_spark.model.past import Opening


def like_shaped_slices(batch: pa.RecordBatch, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of `batch`, at most `batch_rows` at a time, ordered by number of sessions and of tokens.

    The model walks through as many sessions as the longest history of a batch has: rows of one shape waste nothing.
    """
    num_sessions_B = np.diff(list_column(batch, "session_starts").offsets.to_numpy())
    num_tokens_B = np.diff(list_column(batch, "tokens").offsets.to_numpy())
    order = np.lexsort((num_tokens_B, num_sessions_B))
    for first in range(0, batch.num_rows, batch_rows):
        yield batch.take(pa.array(order[first : first + batch_rows]))


def history_batch(rows: pa.RecordBatch, num_features: int = 0) -> HistoryBatch:
    """The rows as a model of so many further features takes them; without a first_target column, no row has targets.

    Raises DataError for damaged rows.
    """
    tokens, starts = list_column(rows, "tokens"), list_column(rows, "session_starts")
    if "first_target" in rows.schema.names:
        first_target = torch.from_numpy(rows.column("first_target").to_numpy(zero_copy_only=False).astype(np.int64))
    else:
        first_target = torch.full((rows.num_rows,), torch.iinfo(torch.int64).max)
    try:
        return HistoryBatch.from_columns(
            tokens=list_values(tokens, np.int64),
            token_offsets=list_offsets(tokens),
            event_types=list_values(list_column(rows, "event_types"), np.int64),
            values=list_values(list_column(rows, "values"), np.float32),
            event_times=list_values(list_column(rows, "event_times"), np.int64),
            session_starts=list_values(starts, np.int64),
            session_start_offsets=list_offsets(starts),
            first_target=first_target,
            features=list_values(list_column(rows, "features"), np.float32) if num_features else None,
            num_features=num_features,
        )
    except ValueError as error:
        raise DataError(f"the sequences are damaged: {error}; run the sequences stage again") from error


def with_moments(rows: pa.RecordBatch, histories: HistoryBatch, num_outcomes: int) -> HistoryBatch:
    """The histories of these rows with what is asked of them, in the columns outcome_*, and what stood before them. Raises DataError for damaged
    rows."""
    places = list_column(rows, "outcome_places")
    try:
        moments = Moments.from_columns(
            list_values(places, np.int64),
            list_offsets(places),
            list_values(list_column(rows, "outcome_elapsed_seconds"), np.int64),
            list_values(list_column(rows, "outcome_labels"), np.float32),
            histories.row_offsets,
            num_outcomes,
        )
    except ValueError as error:
        raise DataError(f"the sequences are damaged: {error}; run the sequences stage again") from error
    columns = (rows.column(name).to_numpy(zero_copy_only=False) for name in OPENING_COLUMNS)
    opening = Opening.from_columns(*(torch.from_numpy(column.copy()) for column in columns))
    return dataclasses.replace(histories, moments=moments, opening=opening)


def list_column(rows: pa.RecordBatch, name: str) -> pa.ListArray:
    if name not in rows.schema.names:
        raise DataError(f"scoring needs the column '{name}' and finds {', '.join(rows.schema.names)}")
    column = rows.column(name)
    if column.null_count:
        # A null list is an empty one; behind a null, an offset may still leap.
        column = pa.array(column.to_pylist(), column.type)
        column = pa.ListArray.from_arrays(column.offsets, column.values)
    return column


def list_offsets(column: pa.ListArray) -> torch.Tensor:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return torch.from_numpy(offsets - offsets[0])


def list_values(column: pa.ListArray, dtype: type) -> torch.Tensor:
    """The lists' elements end to end, a copy; a null among floats becomes NaN."""
    values = column.values.slice(column.offsets[0].as_py(), column.offsets[-1].as_py() - column.offsets[0].as_py())
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype(dtype))
