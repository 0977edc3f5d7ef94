"""The history kernel: sorted steps in, rows of a user's history out, in numpy and Arrow. It needs no Spark.

A row spans [start, end) of a user's steps; positions from `first_target` on are predicted from what stands before them in the row. Where
outcomes are asked about, a row may predict no position: it is there for the moments of a user whom no other row of its split asks about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_spark.config import SPLIT_KINDS
from llm_spark.transforms.fill_kernel import KEEP, FilledValues, ValueFill, fill_values
from llm_spark.transforms.outcome_account import Openings
from llm_spark.transforms.outcome_kernel import Moments, OutcomeRules, UserOutcomes

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
    first_asked: int
    """Outcomes are asked about after the steps from this one on, likewise: from the one before the first target on, where no other row of the
    split asks there."""

    @property
    def only_asks(self) -> bool:
        return self.first_asked < self.first_target == self.end - self.start


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

    By time there are also rows that only ask: of a split whose other rows do not ask after the last step that it knows of the user.
    """

    def choose(times: np.ndarray, session_ends: np.ndarray, session_starts: np.ndarray) -> list[Span]:
        train_end, validation_end = _split_ends(rules, session_ends, session_starts)
        by_time = rules.split == BY_TIME
        spans = []
        for split, start, end, boundary in (
            (TRAIN, 0, train_end, None),
            (VALIDATION, train_end, validation_end, rules.train_until),
            (TEST, validation_end, len(times), rules.validation_until),
        ):
            first = max(1, start)
            stretches = (
                [(first, end)]
                if boundary is None
                else _latest_so_far(times, first, end, boundary if by_time else _ALWAYS)
            )
            for first, last in stretches:
                spans += _chunks(split, first, last, rules)
            is_asked = bool(spans) and (spans[-1].split, spans[-1].end) == (split, end)
            if by_time and end and not is_asked:
                length = min(end, rules.max_tokens)
                spans.append(Span(split, end - length, end, length, length - 1))
        return spans

    return choose


def whole_span(times: np.ndarray, session_ends: np.ndarray, session_starts: np.ndarray) -> list[Span]:
    """One row: all steps, as scoring needs them; it predicts nothing, and nothing is asked about."""
    return [Span(TEST, 0, len(times), len(times), len(times))]


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
        spans.append(Span(split, start, stop, here - start, here - start - (here == first)))
        here = stop
    return spans


@dataclass(frozen=True)
class _Row:
    """A row to be made: where its user's steps begin, its number among the user's rows of that split, what is asked of it."""

    user_start: int
    number: int
    span: Span
    moments: Moments | None


def history_batches(
    batches: Iterable[pa.RecordBatch],
    choose: SpanChooser,
    rows_per_batch: int = 4096,
    fill: ValueFill = KEEP,
    outcomes: OutcomeRules | None = None,
) -> Iterator[pa.RecordBatch]:
    """Turn step batches into history rows, missing values filled by `fill`, with the labels of `outcomes` from each row's `first_asked` on.

    A row that only asks is there where `outcomes` are given, and one of them is known.

    A filled value depends on no later step, but for interpolated ones: in a row of training on steps of that row, in other rows on steps before
    the first target.

    In, sorted by user, then in the order of the history: user_id, session_id, session_ended_at (timestamp), event_time (timestamp), token,
    event_type (int), value, and `features` (list of numbers, or null) where there are any. Out: user_id, split (int), row_number (of the
    user's rows in that split), tokens, event_types, values, session_starts, session_ids and sessions_ended_at (session by session),
    event_times (epoch s), first_target, started_at (timestamp), features (event by event), and outcome_places, outcome_elapsed_seconds,
    outcome_labels (moment by moment), and the numbers of `Openings`; features and all that follow null without any.
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
        yield from _rows(steps.slice(0, last_user_start), choose, rows_per_batch, fill, outcomes)
        waiting = steps.slice(last_user_start).combine_chunks().to_batches()
    if waiting:
        yield from _rows(pa.Table.from_batches(waiting).combine_chunks(), choose, rows_per_batch, fill, outcomes)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_encode().indices.to_numpy()


def _last_user_start(steps: pa.Table) -> int:
    codes = _codes(steps["user_id"])
    return int(np.flatnonzero(codes != codes[-1])[-1]) + 1 if codes[0] != codes[-1] else 0


def _epoch_microseconds(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64()).to_numpy()


def _rows(
    steps: pa.Table, choose: SpanChooser, rows_per_batch: int, fill: ValueFill, outcomes: OutcomeRules | None
) -> Iterator[pa.RecordBatch]:
    if steps.num_rows == 0:
        return
    users, sessions = _codes(steps["user_id"]), _codes(steps["session_id"])
    times, session_ends = _epoch_microseconds(steps["event_time"]), _epoch_microseconds(steps["session_ended_at"])
    user_starts = np.append(0, np.flatnonzero(np.diff(users)) + 1)
    user_ends = np.append(user_starts[1:], len(users))
    begins_session = np.append(True, (np.diff(sessions) != 0) | (np.diff(users) != 0))
    begins_user = np.append(True, np.diff(users) != 0)
    logged_values, event_types = _doubles(steps["value"]), steps["event_type"].to_numpy()
    values = fill_values(logged_values, times, begins_user, begins_session, fill)
    openings = Openings(times, begins_user, begins_session, values) if outcomes else None
    rows: list[_Row] = []
    for user_start, user_end in zip(user_starts, user_ends, strict=True):
        numbers: dict[int, int] = {}
        mine = slice(user_start, user_end)
        session_starts = np.flatnonzero(begins_session[mine])
        spans = choose(times[mine], session_ends[mine], session_starts)
        asked = UserOutcomes(times[mine], event_types[mine], logged_values[mine], outcomes) if outcomes else None
        for span in spans:
            first = span.start + span.first_asked
            moments = asked.moments(span.split, span.start, first, span.end) if asked else None
            if span.only_asks and (moments is None or not len(moments.place_L)):
                continue
            number = numbers.get(span.split, 0)
            numbers[span.split] = number + 1
            rows.append(_Row(int(user_start), number, span, moments))
    for first in range(0, len(rows), rows_per_batch):
        yield _row_batch(steps, times, values, openings, begins_session, rows[first : first + rows_per_batch])


def _doubles(column: pa.ChunkedArray) -> np.ndarray:
    """float64, nan where null."""
    return column.cast(pa.float64()).to_numpy()


def _row_batch(
    steps: pa.Table,
    times: np.ndarray,
    values: FilledValues,
    openings: Openings | None,
    begins_session: np.ndarray,
    rows: list[_Row],
) -> pa.RecordBatch:
    spans = [row.span for row in rows]
    starts = np.array([row.user_start + row.span.start for row in rows], dtype=np.int64)
    lengths = np.array([span.end - span.start for span in spans], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # place of each token in its row
    gather = np.repeat(starts, lengths) + places
    is_start = begins_session[gather] | (places == 0)
    starts_in_row = np.add.reduceat(is_start.astype(np.int64), offsets[:-1])
    list_offsets = pa.array(offsets, pa.int32())
    start_offsets = pa.array(np.concatenate([[0], np.cumsum(starts_in_row)]), pa.int32())
    index, session_index = pa.array(gather), pa.array(gather[is_start])
    readable = np.array([span.end - span.start if span.split == TRAIN else span.first_target for span in spans])
    row_values = values.at(gather, np.repeat(starts + readable, lengths))
    user_starts = np.array([row.user_start for row in rows], dtype=np.int64)

    def lists(name: str, kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(list_offsets, _taken(steps, name, index).cast(kind))

    return pa.RecordBatch.from_pydict(
        {
            "user_id": steps["user_id"].take(pa.array(starts)).combine_chunks(),
            "split": pa.array([span.split for span in spans], pa.int32()),
            "row_number": pa.array([row.number for row in rows], pa.int32()),
            "tokens": lists("token", pa.int32()),
            "event_types": lists("event_type", pa.int32()),
            "values": pa.ListArray.from_arrays(list_offsets, _floats(row_values)),
            "session_starts": pa.ListArray.from_arrays(start_offsets, pa.array(places[is_start], pa.int32())),
            "session_ids": pa.ListArray.from_arrays(start_offsets, _taken(steps, "session_id", session_index)),
            "sessions_ended_at": pa.ListArray.from_arrays(
                start_offsets, _taken(steps, "session_ended_at", session_index)
            ),
            "event_times": pa.ListArray.from_arrays(list_offsets, pa.array(times[gather] // 1_000_000, pa.int64())),
            "first_target": pa.array([span.first_target for span in spans], pa.int32()),
            "started_at": steps["event_time"].take(pa.array(starts)).combine_chunks(),
            "features": _features(steps, index, offsets),
            **_outcome_columns([row.moments for row in rows]),
            **(Openings.none(len(rows)) if openings is None else openings.of(starts, user_starts, starts + readable)),
        }
    )


def _taken(steps: pa.Table, name: str, index: pa.Array) -> pa.Array:
    taken = steps[name].take(index).combine_chunks()
    return taken.chunk(0) if isinstance(taken, pa.ChunkedArray) else taken


def _floats(numbers: np.ndarray) -> pa.Array:
    """float32, null where nan."""
    return pa.array(numbers.astype(np.float32), mask=np.isnan(numbers))


def _features(steps: pa.Table, index: pa.Array, offsets: np.ndarray) -> pa.Array:
    """Each row's features, event by event in one list; null where the steps carry none."""
    kind = pa.list_(pa.float32())
    if "features" not in steps.column_names:
        return pa.nulls(len(offsets) - 1, kind)
    taken = _taken(steps, "features", index)
    numbers = taken.flatten().cast(pa.float32())
    num_features = len(numbers) // max(1, len(taken))
    return pa.ListArray.from_arrays(pa.array(offsets * num_features, pa.int32()), numbers)


def _outcome_columns(moments: list[Moments | None]) -> dict[str, pa.Array]:
    asked = [each for each in moments if each is not None]
    if not asked:
        kinds = {"outcome_places": pa.int32(), "outcome_elapsed_seconds": pa.int64(), "outcome_labels": pa.float32()}
        return {name: pa.nulls(len(moments), pa.list_(kind)) for name, kind in kinds.items()}
    offsets = np.concatenate([[0], np.cumsum([len(each.place_L) for each in asked])])
    labels_LO = np.concatenate([each.label_LO for each in asked])
    by_moment, by_label = pa.array(offsets, pa.int32()), pa.array(offsets * labels_LO.shape[1], pa.int32())
    elapsed = np.concatenate([each.elapsed_seconds_L for each in asked])
    return {
        "outcome_places": pa.ListArray.from_arrays(by_moment, pa.array(np.concatenate([m.place_L for m in asked]))),
        "outcome_elapsed_seconds": pa.ListArray.from_arrays(by_moment, pa.array(elapsed)),
        "outcome_labels": pa.ListArray.from_arrays(by_label, _floats(labels_LO.ravel())),
    }
