"""The history kernel: sorted steps in, rows of a user's history out, in numpy and Arrow. It needs no Spark.

A row spans [start, end) of a user's steps; positions from `first_target` on are predicted from what stands before them in the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_spark.transforms.fill_kernel import KEEP, FilledValues, ValueFill, fill_values

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Span:
    """A row to be: steps [start, end) of one user, predicted from `first_target` (counted within the row)."""

    split: int
    start: int
    end: int
    first_target: int


@dataclass(frozen=True)
class HistoryRules:
    """Times in epoch microseconds: training ends before `train_until`, validation before `validation_until`."""

    max_tokens: int
    burn_in_tokens: int
    train_until: int
    validation_until: int


# Chooses the rows of one user from (event times, end time of each step's session), both in epoch microseconds.
SpanChooser = Callable[[np.ndarray, np.ndarray], list[Span]]


def split_spans(rules: HistoryRules) -> SpanChooser:
    """Rows for training, validation and test. A session belongs to the split in which it ends; only its events of that time are targets."""

    def choose(times: np.ndarray, session_ends: np.ndarray) -> list[Span]:
        train_end = int(np.searchsorted(session_ends, rules.train_until, side="left"))
        validation_end = int(np.searchsorted(session_ends, rules.validation_until, side="left"))
        spans = _chunks(TRAIN, 1, train_end, rules)
        first = _first_not_before(times, train_end, validation_end, rules.train_until)
        spans += _chunks(VALIDATION, max(1, first), validation_end, rules)
        first = _first_not_before(times, validation_end, len(times), rules.validation_until)
        return spans + _chunks(TEST, max(1, first), len(times), rules)

    return choose


def latest_spans(max_tokens: int) -> SpanChooser:
    """One row: the user's newest `max_tokens` steps, as scoring needs them."""

    def choose(times: np.ndarray, session_ends: np.ndarray) -> list[Span]:
        num_steps = len(times)
        start = max(0, num_steps - max_tokens)
        return [Span(TEST, start, num_steps, num_steps - start)]

    return choose


def _first_not_before(times: np.ndarray, start: int, end: int, boundary: int) -> int:
    """The first position in [start, end) from which on no event is earlier than `boundary`."""
    early = np.flatnonzero(times[start:end] < boundary)
    return start + int(early[-1]) + 1 if len(early) else start


def _chunks(split: int, first: int, end: int, rules: HistoryRules) -> list[Span]:
    """Cover the targets [first, end) by rows of at most max_tokens; all but a history's first row begin with a burn-in."""
    spans = []
    here = first
    while here < end:
        start = max(0, here - rules.burn_in_tokens)
        if end - start <= rules.max_tokens:
            # The last row takes as much context as there is room for.
            start, stop = max(0, end - rules.max_tokens), end
        else:
            stop = start + rules.max_tokens
        spans.append(Span(split, start, stop, here - start))
        here = stop
    return spans


def history_batches(
    batches: Iterable[pa.RecordBatch], choose: SpanChooser, rows_per_batch: int = 4096, fill: ValueFill = KEEP
) -> Iterator[pa.RecordBatch]:
    """Turn step batches into history rows, missing values filled by `fill`.

    A filled value depends on no later step, but for interpolated ones: in a row of training on steps of that row, in other rows on steps before
    the first target.

    In, sorted by user, then in the order of the history: user_id, session_id, session_ended_at (timestamp), event_time (timestamp), token,
    event_type (int), value. Out: user_id, split (int), row_number (of the user's rows in that split), tokens, event_types, values,
    session_starts, event_times (epoch s), first_target, started_at (timestamp).
    """
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if batch.num_rows == 0:
            continue
        waiting.append(batch)
        users = batch.column("user_id")
        if users[0] == users[-1] and (len(waiting) == 1 or waiting[-2].column("user_id")[-1] == users[0]):
            continue  # still inside one user's history
        steps = pa.Table.from_batches(waiting).combine_chunks()
        last_user_start = _last_user_start(steps)
        yield from _rows(steps.slice(0, last_user_start), choose, rows_per_batch, fill)
        waiting = steps.slice(last_user_start).combine_chunks().to_batches()
    if waiting:
        yield from _rows(pa.Table.from_batches(waiting).combine_chunks(), choose, rows_per_batch, fill)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_encode().indices.to_numpy()


def _last_user_start(steps: pa.Table) -> int:
    codes = _codes(steps["user_id"])
    return int(np.flatnonzero(codes != codes[-1])[-1]) + 1 if codes[0] != codes[-1] else 0


def _epoch_microseconds(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64()).to_numpy()


def _rows(steps: pa.Table, choose: SpanChooser, rows_per_batch: int, fill: ValueFill) -> Iterator[pa.RecordBatch]:
    if steps.num_rows == 0:
        return
    users, sessions = _codes(steps["user_id"]), _codes(steps["session_id"])
    times, session_ends = _epoch_microseconds(steps["event_time"]), _epoch_microseconds(steps["session_ended_at"])
    user_starts = np.append(0, np.flatnonzero(np.diff(users)) + 1)
    user_ends = np.append(user_starts[1:], len(users))
    begins_session = np.append(True, (np.diff(sessions) != 0) | (np.diff(users) != 0))
    begins_user = np.append(True, np.diff(users) != 0)
    values = fill_values(_doubles(steps["value"]), times, begins_user, begins_session, fill)
    spans: list[tuple[int, int, Span]] = []  # (offset of the user's first step, row number in its split, span)
    for user_start, user_end in zip(user_starts, user_ends, strict=True):
        numbers: dict[int, int] = {}
        for span in choose(times[user_start:user_end], session_ends[user_start:user_end]):
            number = numbers.get(span.split, 0)
            numbers[span.split] = number + 1
            spans.append((int(user_start), number, span))
    for first in range(0, len(spans), rows_per_batch):
        yield _row_batch(steps, times, values, begins_session, spans[first : first + rows_per_batch])


def _doubles(column: pa.ChunkedArray) -> np.ndarray:
    """float64, nan where null."""
    return column.cast(pa.float64()).to_numpy()


def _row_batch(
    steps: pa.Table,
    times: np.ndarray,
    values: FilledValues,
    begins_session: np.ndarray,
    spans: list[tuple[int, int, Span]],
) -> pa.RecordBatch:
    starts = np.array([user_start + span.start for user_start, _, span in spans], dtype=np.int64)
    lengths = np.array([span.end - span.start for _, _, span in spans], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # place of each token in its row
    gather = np.repeat(starts, lengths) + places
    is_start = begins_session[gather] | (places == 0)
    starts_in_row = np.add.reduceat(is_start.astype(np.int64), offsets[:-1])
    list_offsets = pa.array(offsets, pa.int32())
    start_offsets = pa.array(np.concatenate([[0], np.cumsum(starts_in_row)]), pa.int32())
    index = pa.array(gather)
    readable = np.array([span.end - span.start if span.split == TRAIN else span.first_target for _, _, span in spans])
    row_values = values.at(gather, np.repeat(starts + readable, lengths))

    def lists(name: str, kind: pa.DataType) -> pa.ListArray:
        taken = steps[name].take(index).combine_chunks()
        taken = taken.chunk(0) if isinstance(taken, pa.ChunkedArray) else taken
        return pa.ListArray.from_arrays(list_offsets, taken.cast(kind))

    return pa.RecordBatch.from_pydict(
        {
            "user_id": steps["user_id"].take(pa.array(starts)).combine_chunks(),
            "split": pa.array([span.split for _, _, span in spans], pa.int32()),
            "row_number": pa.array([number for _, number, _ in spans], pa.int32()),
            "tokens": lists("token", pa.int32()),
            "event_types": lists("event_type", pa.int32()),
            "values": pa.ListArray.from_arrays(
                list_offsets, pa.array(row_values.astype(np.float32), mask=np.isnan(row_values))
            ),
            "session_starts": pa.ListArray.from_arrays(start_offsets, pa.array(places[is_start], pa.int32())),
            "event_times": pa.ListArray.from_arrays(list_offsets, pa.array(times[gather] // 1_000_000, pa.int64())),
            "first_target": pa.array([span.first_target for _, _, span in spans], pa.int32()),
            "started_at": steps["event_time"].take(pa.array(starts)).combine_chunks(),
        }
    )
