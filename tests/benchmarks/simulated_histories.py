"""Histories of simulated users as the sequences table holds them, without Spark: for the benchmarks of training and of explanations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_spark.simulation import Process, SimulationConfig
from llm_spark.tokens import FIRST_ITEM_TOKEN

HELD_OUT_SHARE = 0.2
"""Of the simulated time: events after it are held out."""


@dataclass(frozen=True)
class SimulatedHistories:
    """One row a user, in the columns of the sequences table."""

    training: pa.Table
    """The users' events of the first four fifths of the time."""
    held_out: pa.Table
    """Their whole histories; targets are the events of the last fifth."""
    num_tokens: int
    num_event_types: int


def simulated_histories(config: SimulationConfig) -> SimulatedHistories:
    """Every simulated user with two events or more; each item's token is its index in the process, plus two."""
    process = Process.draw(config)
    events = process.simulate()
    ends_at = events.time_N.min() + (1 - HELD_OUT_SHARE) * (events.time_N.max() - events.time_N.min())
    starts_U = np.flatnonzero(np.diff(events.user_N, prepend=-1))
    spans = list(zip(starts_U, np.append(starts_U[1:], len(events)), strict=True))
    num_before = [int(np.searchsorted(events.time_N[first:end], ends_at)) for first, end in spans]

    def table(ends: list[int], first_targets: list[int]) -> pa.Table:
        kept = [(first, end, target) for (first, _), end, target in zip(spans, ends, first_targets, strict=True)]
        kept = [(first, end, target) for first, end, target in kept if end - first > target]
        index_N = np.concatenate([np.arange(first, end) for first, end, _ in kept])
        offsets = pa.array(np.cumsum([0] + [end - first for first, end, _ in kept]), pa.int32())
        starts = [np.flatnonzero(np.diff(events.session_N[first:end], prepend=-1)) for first, end, _ in kept]
        start_offsets = pa.array(np.cumsum([0] + [len(one) for one in starts]), pa.int32())
        value_N = events.value_N[index_N].astype(np.float32)

        def lists(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
            return pa.ListArray.from_arrays(offsets, pa.array(values, kind, from_pandas=True))

        return pa.table(
            {
                "sequence_id": [str(first) for first, _, _ in kept],
                "user_id": [str(events.user_N[first]) for first, _, _ in kept],
                "tokens": lists(events.item_N[index_N] + FIRST_ITEM_TOKEN, pa.int32()),
                "event_types": lists(events.event_type_N[index_N] + FIRST_ITEM_TOKEN, pa.int32()),
                "values": lists(value_N, pa.float32()),
                "session_starts": pa.ListArray.from_arrays(start_offsets, pa.array(np.concatenate(starts), pa.int32())),
                "event_times": lists(events.time_N[index_N], pa.int64()),
                "first_target": pa.array([target for _, _, target in kept], pa.int32()),
            }
        )

    training_ends = [first + before for (first, _), before in zip(spans, num_before, strict=True)]
    return SimulatedHistories(
        training=table(training_ends, [1] * len(spans)),
        held_out=table([end for _, end in spans], [max(1, before) for before in num_before]),
        num_tokens=config.num_items + FIRST_ITEM_TOKEN,
        num_event_types=process.event_type_VK.shape[1] + FIRST_ITEM_TOKEN,
    )
