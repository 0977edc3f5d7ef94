"""Repeats within a session collapsed, in numpy and Arrow. It needs no Spark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LISTS = ("item_ids", "event_types", "event_times", "event_values", "event_features")


def collapse_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Keep the first of events with the same item and type directly after one another in a session.

    In and out: batches of schemas.SESSIONS, a session whole in one row. `num_events` falls by as much as `num_collapsed` rises; started_at and
    ended_at stay those of all the session's events. A session with a `reason` to set it aside stays as it is.
    """
    for batch in batches:
        yield _collapsed(batch)


def _collapsed(batch: pa.RecordBatch) -> pa.RecordBatch:
    # Slices begin anywhere in the lists' buffers; flatten() already begins where the slice does.
    offsets = batch.column("item_ids").offsets.to_numpy().astype(np.int64)
    offsets = offsets - offsets[0]
    # Without features their column is null throughout, and stays so.
    lists = [name for name in _LISTS if batch.column(name).null_count < batch.num_rows]
    flat = {name: batch.column(name).flatten() for name in lists}
    kept = np.ones(offsets[-1], dtype=bool)
    if len(kept) > 1:
        differ = pc.or_(_changes(flat["item_ids"]), _changes(flat["event_types"]))
        kept[1:] = differ.to_numpy(zero_copy_only=False)
    if "reason" in batch.schema.names:
        is_aside = batch.column("reason").is_valid().to_numpy(zero_copy_only=False)
        kept |= np.repeat(is_aside, np.diff(offsets))
    firsts = offsets[:-1]
    kept[firsts[firsts < len(kept)]] = True
    num_kept_before = np.concatenate([[0], np.cumsum(kept)])
    kept_offsets = num_kept_before[offsets]
    num_kept = np.diff(kept_offsets)
    num_collapsed = batch.column("num_collapsed").to_numpy() + np.diff(offsets) - num_kept
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    mask, list_offsets = pa.array(kept), pa.array(kept_offsets, pa.int32())
    columns |= {name: pa.ListArray.from_arrays(list_offsets, flat[name].filter(mask)) for name in lists}
    columns["num_events"] = pa.array(num_kept, pa.int32())
    columns["num_collapsed"] = pa.array(num_collapsed, pa.int32())
    return pa.RecordBatch.from_pydict(columns)


def _changes(array: pa.Array) -> pa.Array:
    """Whether each entry but the first differs from the one before."""
    return pc.fill_null(pc.not_equal(array[1:], array[:-1]), True)
