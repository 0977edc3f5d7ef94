"""Generated event logs for benchmarks: Zipf users over a year or less, in sessions, with one bot that never sleeps. numpy and Arrow alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

START_SECONDS = 1_735_689_600  # 2025-01-01
_ROWS_PER_BATCH = 500_000


@dataclass(frozen=True)
class LogShape:
    """What a log looks like. `bot_share` of all events are one user's, evenly spaced over the year."""

    num_events: int
    bot_share: float = 0.05
    zipf_exponent: float = 0.8
    """0 makes all users alike."""
    events_per_user: float = 25.0
    events_per_session: float = 8.0
    num_items: int = 20_000
    num_days: int = 365
    seed: int = 0


def event_log(shape: LogShape) -> Iterator[pa.Table]:
    """The log in pieces, in no order: event_id, user_id, item_id, event_type, event_time, value, session_key."""
    random = np.random.default_rng(shape.seed)
    num_bot = int(shape.num_events * shape.bot_share)
    num_people = shape.num_events - num_bot
    num_users = _num_users(shape)
    weights = np.arange(1, num_users + 1, dtype=np.float64) ** -shape.zipf_exponent
    places = random.permutation(num_users)
    num_sessions = int(num_people / shape.events_per_session * 1.2) + 10
    owners = places[
        np.searchsorted(np.cumsum(weights / weights.sum()), random.random(num_sessions)).clip(0, num_users - 1)
    ]
    lengths = random.geometric(1 / shape.events_per_session, num_sessions)
    num_used = int(np.searchsorted(np.cumsum(lengths), num_people)) + 1
    owners, lengths = owners[:num_used], lengths[:num_used]
    starts = random.integers(0, shape.num_days * 86_400_000 - 7_200_000, num_used)
    user_N = np.repeat(owners, lengths)[:num_people]
    pauses = random.exponential(60_000, int(lengths.sum())).astype(np.int64)
    since = np.cumsum(pauses) - np.repeat(np.cumsum(pauses)[np.cumsum(lengths) - lengths], lengths)
    time_N = (np.repeat(starts, lengths) + since)[:num_people]
    if num_bot:
        user_N = np.concatenate([user_N, np.full(num_bot, num_users)])
        time_N = np.concatenate([time_N, np.linspace(0, shape.num_days * 86_400_000 - 1, num_bot).astype(np.int64)])
    order = random.permutation(len(user_N))
    user_names = np.array([_user_name(number) for number in range(num_users + 1)], dtype="S13")
    item_names = np.array([f"item-{number:06d}" for number in range(shape.num_items)], dtype="S11")
    types = pa.array(["view", "cart", "purchase"])
    for first in range(0, len(order), _ROWS_PER_BATCH):
        rows = order[first : first + _ROWS_PER_BATCH]
        num = len(rows)
        items = np.minimum(random.zipf(1.2, num) - 1, random.integers(0, shape.num_items, num))
        values = pa.array(random.gamma(2.0, 10.0, num).round(2), mask=random.random(num) < 0.5)
        yield pa.table(
            {
                "event_id": _texts(_hex(random, num)),
                "user_id": _texts(user_names[user_N[rows]]),
                "item_id": _texts(item_names[items]),
                "event_type": types.take(pa.array(np.searchsorted([0.8, 0.95], random.random(num)))),
                "event_time": pa.array((START_SECONDS * 1000 + time_N[rows]) * 1000, pa.timestamp("us", tz="UTC")),
                "value": values,
                "session_key": pa.nulls(num, pa.string()),
            }
        )


def bot_of(shape: LogShape) -> str:
    """The bot's user id; no one's where the log has no bot."""
    return _user_name(_num_users(shape))


def _num_users(shape: LogShape) -> int:
    return max(1, int(shape.num_events * (1 - shape.bot_share) / shape.events_per_user))


def _user_name(number: int) -> str:
    return f"user-{number:08d}"


def _hex(random: np.random.Generator, num: int) -> np.ndarray:
    digits = np.array([f"{byte:02x}" for byte in range(256)], dtype="S2")
    return digits[random.integers(0, 256, (num, 16))].view("S32").reshape(num)


def _texts(fixed: np.ndarray) -> pa.Array:
    """Text of equal length without a Python object for each."""
    width = fixed.dtype.itemsize
    offsets = pa.py_buffer(np.arange(0, (len(fixed) + 1) * width, width, dtype=np.int32))
    return pa.StringArray.from_buffers(len(fixed), offsets, pa.py_buffer(np.ascontiguousarray(fixed)))
