"""The sessionization kernel: events sorted by one number in, sessions out, batch by batch, in numpy and Arrow.

It needs no Spark. That number, `sort_key`, holds a hash of an event's owner (the user, with the session key where the log gives one) above
the second of its time: what sorts events need not look at texts, nor at more than eight bytes. The kernel sets right what that leaves open,
which is little: the order within a second, and owners that share a hash. Batches may cut anywhere. Only what may still change is carried
from one to the next, the open session and the newest second, so a user larger than memory streams through.

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
SECOND_BITS = 32
"""Of a sort key the lower ones: the second of the time. Those above are the hash of the owner."""


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
    """Turn event batches, sorted by sort_key, into session batches.

    In: sort_key (int64), user_id, session_key, event_time (timestamp), event_id, item_id, event_type, value, local_day (int) where a session
    ends with the day, and features (list of doubles) where there are any.
    Out: user_id, session_key, first_event_id, started_at, ended_at, num_events, item_ids, event_types, event_times, event_values,
    event_features (null without features).
    """
    open_events: pa.Table | None = None
    for events in _in_order(batches):
        if open_events is not None:
            events = pa.concat_tables([open_events, events]).combine_chunks()
        events = _owners_apart(events, rules)
        starts = session_starts(events, rules)
        is_open = _may_go_on(events, starts, rules)
        lengths = np.diff(np.append(starts, events.num_rows))
        if is_open[:-1].any():
            of_open = np.repeat(is_open, lengths)
            events = events.take(pa.array(np.argsort(of_open, kind="stable")))
        num_open = int(lengths[is_open].sum())
        open_events = events.slice(events.num_rows - num_open)
        if not is_open.all():
            yield _sessions(events.slice(0, events.num_rows - num_open), lengths[~is_open])
    if open_events is not None:
        yield _sessions(open_events, lengths[is_open])


def _in_order(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The events by sort_key, event_time and event_id, all those of one sort_key in one table."""
    newest: list[pa.RecordBatch] = []  # events of one sort_key, to which more may belong
    for batch in batches:
        if batch.num_rows == 0:
            continue
        keys = batch["sort_key"].to_numpy()
        num_before = int(np.searchsorted(keys, keys[-1]))
        if newest and (num_before or newest[0]["sort_key"][0].as_py() != keys[0]):
            yield _seconds_in_order(pa.Table.from_batches([*newest, batch.slice(0, num_before)]).combine_chunks())
            newest = []
        elif num_before:
            yield _seconds_in_order(pa.Table.from_batches([batch.slice(0, num_before)]))
        newest.append(batch.slice(num_before))
    if newest:
        yield _seconds_in_order(pa.Table.from_batches(newest).combine_chunks())


def _seconds_in_order(events: pa.Table) -> pa.Table:
    """Events of one sort_key, which stand together, in the order of their time and id."""
    keys = events["sort_key"].to_numpy()
    is_same = np.zeros(len(keys) + 1, dtype=bool)
    is_same[1:-1] = keys[1:] == keys[:-1]
    tied = np.flatnonzero(is_same[1:] | is_same[:-1])
    if not len(tied):
        return events
    order = np.arange(len(keys))
    by = [(name, "ascending") for name in ("sort_key", "event_time", "event_id")]
    tied_events = events.select([name for name, _ in by]).take(pa.array(tied))
    order[tied] = tied[pc.sort_indices(tied_events, sort_keys=by).to_numpy()]
    return events.take(pa.array(order))


def _owners_apart(events: pa.Table, rules: SessionRules) -> pa.Table:
    """The events of owners that share a hash, which stand mixed by time, owner by owner."""
    if not (_same_hash(events) & _owner_changes(events, rules)).any():
        return events
    owners = events.select(["user_id", "session_key"]).append_column("hash", pa.array(_hashes(events)))
    by = [(name, "ascending") for name in ("hash", "user_id", *(["session_key"] if rules.by_key else []))]
    return events.take(pc.sort_indices(owners, sort_keys=by))


def _may_go_on(events: pa.Table, starts: np.ndarray, rules: SessionRules) -> np.ndarray:
    """Whether more events may belong to each session: to the last one, and to the last of each owner with the same hash."""
    is_open = np.zeros(len(starts), dtype=bool)
    hashes = _hashes(events)
    first_of_hash = int(np.searchsorted(hashes, hashes[-1]))
    others = 1 + first_of_hash + np.flatnonzero(_owner_changes(events.slice(first_of_hash), rules))
    is_open[np.searchsorted(starts, others) - 1] = True
    is_open[-1] = True
    return is_open


def _hashes(events: pa.Table) -> np.ndarray:
    return events["sort_key"].to_numpy() >> SECOND_BITS


def _same_hash(events: pa.Table) -> np.ndarray:
    hashes = _hashes(events)
    return hashes[1:] == hashes[:-1]


def _owner_changes(events: pa.Table, rules: SessionRules) -> np.ndarray:
    """Whether each event but the first is of another owner than the one before."""
    changes = _changes(events["user_id"])
    return changes | _changes(events["session_key"]) if rules.by_key else changes


def session_starts(events: pa.Table, rules: SessionRules) -> np.ndarray:
    """Offsets at which a session begins; the first is 0."""
    times = _microseconds(events["event_time"])
    is_start = np.ones(len(times), dtype=bool)
    is_start[1:] = _owner_changes(events, rules)
    by_gap = events["session_key"].is_null().to_numpy() if rules.by_key else np.ones(len(times), dtype=bool)
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


def _sessions(events: pa.Table, lengths: np.ndarray) -> pa.RecordBatch:
    offsets = np.append(0, np.cumsum(lengths))
    starts, lasts = offsets[:-1], offsets[1:] - 1
    flat = {name: events[name].combine_chunks() for name in events.column_names}
    flat = {name: array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for name, array in flat.items()}
    list_offsets = pa.array(offsets, pa.int32())
    columns = {
        "user_id": flat["user_id"].take(pa.array(starts)),
        "session_key": flat["session_key"].take(pa.array(starts)),
        "first_event_id": flat["event_id"].take(pa.array(starts)),
        "started_at": flat["event_time"].take(pa.array(starts)),
        "ended_at": flat["event_time"].take(pa.array(lasts)),
        "num_events": pa.array(lengths, pa.int32()),
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
