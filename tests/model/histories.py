"""Small histories for the tests of model, training and scoring."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from llm_spark.model.history import HistoryBatch
from llm_spark.model.outcomes import Moments
from llm_spark.model.past import Opening

Row = dict[str, list]
"""tokens, event_types, values, event_times, session_starts, first_target: one row as the sequences table holds it.

Where a model has further features, also `features`: a list of their numbers for each event. Where something stands before the row, also the
numbers of `opening_of`.
"""


def row(
    sessions: list[list[int]],
    first_target: int = 1,
    event_type: int = 2,
    value: float = float("nan"),
    gap_seconds: int = 86_400,
) -> Row:
    """A history of these sessions: events a minute apart, sessions `gap_seconds` apart."""
    tokens = [token for session in sessions for token in session]
    starts = np.cumsum([0] + [len(session) for session in sessions])[:-1]
    times, now = [], 1_600_000_000
    for session in sessions:
        times += [now + 60 * i for i in range(len(session))]
        now = times[-1] + gap_seconds
    return {
        "tokens": tokens,
        "event_types": [event_type] * len(tokens),
        "values": [value] * len(tokens),
        "event_times": times,
        "session_starts": list(starts),
        "first_target": first_target,
    }


def random_rows(
    num_rows: int, num_tokens: int, num_event_types: int, seed: int, max_sessions: int = 5, max_length: int = 7
) -> list[Row]:
    """Histories without any pattern, of 1 to `max_sessions` sessions of 1 to `max_length` events; some tokens unknown, some values missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        lengths = rng.integers(1, max_length + 1, size=rng.integers(1, max_sessions + 1))
        made = row(
            [list(rng.integers(1, num_tokens, size=n)) for n in lengths], gap_seconds=int(rng.integers(4_000, 400_000))
        )
        size = len(made["tokens"])
        made["event_types"] = list(rng.integers(1, num_event_types, size=size))
        made["values"] = list(np.where(rng.random(size) < 0.3, np.nan, rng.normal(5, 3, size)))
        made["first_target"] = int(rng.integers(1, max(2, size)))
        rows.append(made)
    return rows


def with_features(rows: list[Row], num_features: int, seed: int) -> list[Row]:
    """The rows with random features, a third of them missing."""
    rng = np.random.default_rng(seed)
    for one_row in rows:
        numbers = rng.normal(2, 4, (len(one_row["tokens"]), num_features))
        numbers[rng.random(numbers.shape) < 0.3] = np.nan
        one_row["features"] = numbers.tolist()
    return rows


def with_moments(rows: list[Row], num_outcomes: int, seed: int) -> list[Row]:
    """The rows with moments after random events, and random labels of 0 and 1, a third of them censored."""
    rng = np.random.default_rng(seed)
    for one_row in rows:
        num_moments = int(rng.integers(0, 6))
        labels = rng.integers(0, 2, (num_moments, num_outcomes)).astype(float)
        labels[rng.random(labels.shape) < 0.3] = np.nan
        one_row["outcome_places"] = sorted(rng.integers(0, len(one_row["tokens"]), num_moments).tolist())
        one_row["outcome_elapsed_seconds"] = rng.integers(0, 10**6, num_moments).tolist()
        one_row["outcome_labels"] = labels.tolist()
    return rows


def moments_of(rows: list[Row], row_offsets: torch.Tensor) -> Moments | None:
    """The rows' moments as the model takes them; None where no row has any."""
    if not any("outcome_places" in r for r in rows):
        return None
    labels = [label for r in rows for label in r["outcome_labels"]]
    return Moments.from_columns(
        places=torch.tensor([x for r in rows for x in r["outcome_places"]], dtype=torch.int32),
        offsets=torch.tensor(np.cumsum([0] + [len(r["outcome_places"]) for r in rows]), dtype=torch.int64),
        elapsed_seconds=torch.tensor([x for r in rows for x in r["outcome_elapsed_seconds"]], dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.float32).flatten(),
        row_offsets=row_offsets,
        num_outcomes=len(labels[0]) if labels else 1,
    )


def opening_of(one_row: Row) -> dict[str, float]:
    """What stands before the row: nothing, unless the row says otherwise."""
    began = one_row["event_times"][0] if one_row["event_times"] else 0
    nothing = {"num_sessions_before": 0, "value_sum_before": 0.0}
    nothing |= {"first_event_time": began, "latest_event_time_before": began}
    return {name: one_row.get(name, number) for name, number in nothing.items()}


def openings_of(rows: list[Row]) -> Opening:
    """Likewise of all, as the model takes it."""
    names = ("num_sessions_before", "first_event_time", "latest_event_time_before", "value_sum_before")
    return Opening.from_columns(*(torch.tensor([opening_of(r)[name] for r in rows]) for name in names))


def prefix(one_row: Row, num_events: int) -> Row:
    """The row as it was after its first events."""
    by_event = ("tokens", "event_types", "values", "event_times", "features")
    cut = {name: column[:num_events] for name, column in one_row.items() if name in by_event}
    starts = [start for start in one_row["session_starts"] if start < num_events]
    return {**cut, "session_starts": starts, "first_target": one_row["first_target"]}


def batch_of(rows: list[Row]) -> HistoryBatch:
    """The rows as the model takes them."""

    def flat(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([x for r in rows for x in r[name]], dtype=dtype)

    def offsets(name: str) -> torch.Tensor:
        return torch.tensor(np.cumsum([0] + [len(r[name]) for r in rows]), dtype=torch.int64)

    features = [numbers for r in rows for numbers in r.get("features", [])]
    batch = HistoryBatch.from_columns(
        tokens=flat("tokens", torch.int32),
        token_offsets=offsets("tokens"),
        event_types=flat("event_types", torch.int32),
        values=flat("values", torch.float32),
        event_times=flat("event_times", torch.int64),
        session_starts=flat("session_starts", torch.int32),
        session_start_offsets=offsets("session_starts"),
        first_target=torch.tensor([r["first_target"] for r in rows], dtype=torch.int32),
        features=torch.tensor(features, dtype=torch.float32).flatten() if features else None,
        num_features=len(features[0]) if features else 0,
    )
    return dataclasses.replace(batch, moments=moments_of(rows, batch.row_offsets), opening=openings_of(rows))
