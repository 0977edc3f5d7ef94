"""The certificate's kernel: rows of the sequences table in, what each row says of each second out, in numpy and Arrow. It needs no Spark.

Legend: R rows, P positions of all rows end to end, S distinct seconds of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa


def row_seconds(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One row for each distinct second of each history.

    In: user_id, split, event_times (epoch s), first_target. Out: user_id, split, second, num_here (positions of the row at that second),
    num_targets (those that it predicts), num_early_targets (those of them that a later event stands before: their future in the input).
    """
    for batch in batches:
        column = batch.column("event_times")
        offsets = column.offsets.to_numpy().astype(np.int64)
        times_P = column.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
        lengths_R = np.diff(offsets)
        if not len(times_P):
            continue
        row_P = np.repeat(np.arange(batch.num_rows), lengths_R)
        place_P = np.arange(len(times_P)) - np.repeat(offsets[:-1] - offsets[0], lengths_R)
        first_target_R = batch.column("first_target").to_numpy(zero_copy_only=False)
        is_target_P = place_P >= first_target_R[row_P]
        is_early_P = is_target_P & (times_P < _latest_so_far(times_P, row_P))
        order_P = np.lexsort((times_P, row_P))
        row_P, times_P = row_P[order_P], times_P[order_P]
        begins_P = np.append(True, (np.diff(row_P) != 0) | (np.diff(times_P) != 0))
        first_S = np.flatnonzero(begins_P)

        def sums(flags_P: np.ndarray, order_P: np.ndarray = order_P, first_S: np.ndarray = first_S) -> pa.Array:
            return pa.array(np.add.reduceat(flags_P[order_P].astype(np.int64), first_S), pa.int32())

        rows_S = pa.array(row_P[first_S])
        yield pa.RecordBatch.from_pydict(
            {
                "user_id": batch.column("user_id").take(rows_S),
                "split": batch.column("split").take(rows_S),
                "second": pa.array(times_P[first_S], pa.int64()),
                "num_here": sums(np.ones(len(order_P), dtype=np.int64)),
                "num_targets": sums(is_target_P),
                "num_early_targets": sums(is_early_P),
            }
        )


def _latest_so_far(times_P: np.ndarray, row_P: np.ndarray) -> np.ndarray:
    """The latest time up to and with each position of its row."""
    # Each row is lifted above the one before, so that one running maximum serves all of them.
    lift_P = row_P * (int(times_P.max()) - int(times_P.min()) + 1)
    return np.maximum.accumulate(times_P + lift_P) - lift_P
