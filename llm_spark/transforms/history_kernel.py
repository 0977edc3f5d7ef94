"""The history kernel: sorted steps in, rows of a user's history out, in numpy and Arrow. It needs no Spark.

A row spans [start, end) of a user's steps; positions from `first_target` on are predicted from what stands before them in the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_spark.config import SPLIT_KINDS
from llm_spark.transforms.fill_kernel import KEEP, FilledValues, ValueFill, fill_values

TRAIN, VALIDATION, TEST = 0, 1, 2
BY_TIME, LEAVE_LAST_SESSION_OUT, LEAVE_LAST_EVENT_OUT = SPLIT_KINDS
MIN_TO_LEAVE_OUT = 3
"""A user with fewer sessions (or events) than this is trained on whole: with the last two left out, nothing would remain."""


@dataclass(frozen=True)
class Span:
    """A row to be: steps [start, end) of one user, predicted from `first_target` (counted within the row)."""

    split: int
    start: int
    end: int
    first_target: int


@dataclass(frozen=True)
class HistoryRules:
    """How rows are cut. By time, in epoch microseconds: training ends before `train_until`, validation before `validation_until`."""

    max_tokens: int
    burn_in_tokens: int
    train_until: int = 0
    validation_until: int = 0
    split: str = BY_TIME


# Chooses the rows of one user from (event times, end time of each step's session, offsets at which sessions begin); times in epoch
# microseconds.
SpanChooser = Callable[[np.ndarray, np.ndarray, np.ndarray], list[Span]]
_ALWAYS = np.iinfo(np.int64).min


def split_spans(rules: HistoryRules) -> SpanChooser:
    """Rows for training, validation and test.

    By time a session belongs to the split in which it ends, and only its events of that time are targets. Else a user's last session (or
    event) is test and the one before validation. What validation and test predict is as late as all that stands before it.
    """

    def choose(times: np.ndarray, session_ends: np.ndarray, session_starts: np.ndarray) -> list[Span]:
        train_end, validation_end = _split_ends(rules, session_ends, session_starts)
        by_time = rules.split == BY_TIME
        spans = _chunks(TRAIN, 1, train_end, rules)
        for split, start, end, boundary in (
            (VALIDATION, train_end, validation_end, rules.train_until),
            (TEST, validation_end, len(times), rules.validation_until),
        ):
            for first, last in _latest_so_far(times, max(1, start), end, boundary if by_time else _ALWAYS):
                spans += _chunks(split, first, last, rules)
        return spans

    return choose


def latest_spans(max_tokens: int) -> SpanChooser:
    """One row: the user's newest `max_tokens` steps, as scoring needs them."""

    def choose(times: np.ndarray, session_ends: np.ndarray, session_starts: np.ndarray) -> list[Span]:
        num_steps = len(times)
        start = max(0, num_steps - max_tokens)
        return [Span(TEST, start, num_steps, num_steps - start)]

    return choose


def _split_ends(rules: HistoryRules, session_ends: np.ndarray, session_starts: np.ndarray) -> tuple[int, int]:
    """Where in the user's steps training and validation end."""
    num_steps = len(session_ends)
    if rules.split == BY_TIME:
        train_end, validation_end = np.searchsorted(session_ends, [rules.train_until, rules.validation_until])
        return int(train_end), int(validation_end)
    if rules.split == LEAVE_LAST_EVENT_OUT:
        return (num_steps - 2, num_steps - 1) if num_steps >= MIN_TO_LEAVE_OUT else (num_steps, num_steps)
    if len(session_starts) < MIN_TO_LEAVE_OUT:
        return num_steps, num_steps
    return int(session_starts[-2]), int(session_starts[-1])


def _latest_so_far(times: np.ndarray, start: int, end: int, boundary: int) -> list[tuple[int, int]]:
    """Stretches of [start, end) whose every event is neither before `boundary` nor before any earlier step of the history."""
    if start >= end:
        return []
    latest_before = np.maximum.accumulate(times[: end - 1])[start - 1 :]
    fits = times[start:end] >= np.maximum(latest_before, boundary)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], fits, [False]]).astype(np.int8)))
    return [(start + int(first), start + int(last)) for first, last in edges.reshape(-1, 2)]


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
        session_starts = np.flatnonzero(begins_session[user_start:user_end])
        for span in choose(times[user_start:user_end], session_ends[user_start:user_end], session_starts):
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
