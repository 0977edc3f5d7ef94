"""The sessionization kernel: sorted events in, sessions out, batch by batch, in numpy and Arrow.

It needs no Spark. Events come sorted by user (then by session key where the log gives one), time and event id; batches may cut anywhere.
Only the open session is carried from one batch to the next, so a user larger than memory streams through.

Sessions are cut greedily from the beginning of each stretch without a gap: where one ends depends on no event after its successor's first.
late_events.py builds on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class SessionRules:
    """When a session ends.

    `by_key`: where the log's own session key changes or `max_events` are reached; events without a key still go by the gap, the length and
    the day. `by_day`: where the column local_day changes.
    """

    gap_seconds: int
    max_length_seconds: int
    max_events: int
    by_key: bool
    by_day: bool = False


def sessionize_batches(batches: Iterable[pa.RecordBatch], rules: SessionRules) -> Iterator[pa.RecordBatch]:
    """Turn sorted event batches into session batches.

    In: user_id, session_key, event_time (timestamp), event_id, item_id, event_type, value, local_day (int) where a session ends with the day,
    and features (list of doubles) where there are any.
    Out: user_id, session_key, first_event_id, started_at, ended_at, num_events, item_ids, event_types, event_times, event_values,
    event_features (null without features).
    """
    open_events: pa.Table | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        events = pa.Table.from_batches([batch])
        if open_events is not None:
            events = pa.concat_tables([open_events, events])
        events = events.combine_chunks()
        starts = session_starts(events, rules)
        if len(starts) > 1:
            yield _sessions(events.slice(0, starts[-1]), starts[:-1])
        open_events = events.slice(starts[-1])
    if open_events is not None and open_events.num_rows:
        yield _sessions(open_events.combine_chunks(), np.zeros(1, dtype=np.int64))


def session_starts(events: pa.Table, rules: SessionRules) -> np.ndarray:
    """Offsets at which a session begins; the first is 0."""
    times = _microseconds(events["event_time"])
    is_start = np.ones(len(times), dtype=bool)
    is_start[1:] = _changes(events["user_id"])
    by_gap = np.ones(len(times), dtype=bool)
    if rules.by_key:
        is_start[1:] |= _changes(events["session_key"])
        by_gap = events["session_key"].is_null().to_numpy()
    is_start[1:] |= by_gap[1:] & (np.diff(times) > rules.gap_seconds * MICROSECONDS)
    if rules.by_day:
        is_start[1:] |= by_gap[1:] & (np.diff(events["local_day"].to_numpy()) != 0)
    starts = np.flatnonzero(is_start)
    longest = np.where(by_gap[starts], rules.max_length_seconds * MICROSECONDS, np.iinfo(np.int64).max)
    return _cut_long(starts, times, longest, rules.max_events)


def _cut_long(starts: np.ndarray, times: np.ndarray, longest: np.ndarray, max_events: int) -> np.ndarray:
    """Cut sessions that exceed their longest time or the most events, each piece as long as the limits allow."""
    ends = np.append(starts[1:], len(times))
    too_long = (ends - starts > max_events) | (times[ends - 1] - times[starts] > longest)
    cuts = []
    for start, end, limit in zip(starts[too_long], ends[too_long], longest[too_long], strict=True):
        here = start
        while True:
            in_time = np.searchsorted(times[here:end] - times[here], limit, side="right")
            following = here + min(max_events, int(in_time))
            if following >= end:
                break
            cuts.append(following)
            here = following
    return np.sort(np.concatenate([starts, np.array(cuts, dtype=np.int64)])) if cuts else starts


def _microseconds(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64()).to_numpy()


def _changes(column: pa.ChunkedArray) -> np.ndarray:
    """Whether each value but the first differs from the one before; nulls are equal to each other."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    differ = pc.not_equal(array[1:], array[:-1])
    if array.null_count:
        null = pc.is_null(array)
        differ = pc.if_else(pc.is_null(differ), pc.not_equal(null[1:], null[:-1]), differ)
    return differ.to_numpy(zero_copy_only=False)


def _sessions(events: pa.Table, starts: np.ndarray) -> pa.RecordBatch:
    offsets = np.append(starts, events.num_rows)
    lasts = offsets[1:] - 1
    flat = {name: events[name].combine_chunks() for name in events.column_names}
    flat = {name: array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for name, array in flat.items()}
    list_offsets = pa.array(offsets, pa.int32())
    columns = {
        "user_id": flat["user_id"].take(pa.array(starts)),
        "session_key": flat["session_key"].take(pa.array(starts)),
        "first_event_id": flat["event_id"].take(pa.array(starts)),
        "started_at": flat["event_time"].take(pa.array(starts)),
        "ended_at": flat["event_time"].take(pa.array(lasts)),
        "num_events": pa.array(np.diff(offsets), pa.int32()),
        "item_ids": pa.ListArray.from_arrays(list_offsets, flat["item_id"]),
        "event_types": pa.ListArray.from_arrays(list_offsets, flat["event_type"]),
        "event_times": pa.ListArray.from_arrays(list_offsets, flat["event_time"]),
        "event_values": pa.ListArray.from_arrays(list_offsets, flat["value"]),
        "event_features": (
            pa.ListArray.from_arrays(list_offsets, flat["features"])
            if "features" in flat
            else pa.nulls(len(starts), pa.list_(pa.list_(pa.float64())))
        ),
    }
    return pa.RecordBatch.from_pydict(columns)
