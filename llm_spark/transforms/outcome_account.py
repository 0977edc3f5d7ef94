"""What stands before each row of a history, as the outcome head's account counts it, in numpy. It needs no Spark.

The head is told how often a user has come, since when, and what was spent (model/outcomes.py). A row may begin late in a long history: what its
own steps count is then too little, and less than scoring counts, which has the whole history.

Legend: N steps of whole users, one after another; R rows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from llm_spark.config.outcomes import OPENING_COLUMNS
from llm_spark.transforms.fill_kernel import FilledValues

_NEVER = np.iinfo(np.int64).max
_KINDS = dict(zip(OPENING_COLUMNS, (pa.int32(), pa.int64(), pa.int64(), pa.float64()), strict=True))


class Openings:
    """What an account begins with at any step of these histories."""

    def __init__(
        self, times_N: np.ndarray, begins_user_N: np.ndarray, begins_session_N: np.ndarray, values: FilledValues
    ) -> None:
        """`times_N` in epoch microseconds, in the order of the histories."""
        self._seconds_N = times_N // 1_000_000
        # Each user is lifted above the one before, so that one running maximum serves all of them.
        lift_N = np.cumsum(begins_user_N) * (int(np.ptp(self._seconds_N)) + 1)
        self._latest_N = np.maximum.accumulate(self._seconds_N + lift_N) - lift_N
        self._session_N = np.cumsum(begins_session_N)
        steps_N = np.arange(len(times_N))
        self._known_again_N = values.known_again
        is_other_N = np.append(True, np.diff(values.known_again) != 0)
        self._gap_start_N = np.maximum.accumulate(np.where(is_other_N, steps_N, 0))
        self._total = _totals(values.at(steps_N, np.full(len(steps_N), _NEVER)))
        self._total_looking_back = _totals(values.looking_back)

    def of(self, start_R: np.ndarray, user_start_R: np.ndarray, may_depend_before_R: np.ndarray) -> dict[str, pa.Array]:
        """The columns of rows that begin at these steps: num_sessions_before (whole sessions), value_sum_before (of values none of which depends
        on a step at or after `may_depend_before_R`), latest_event_time_before and first_event_time, in epoch seconds. With nothing before
        it, both are the time of the row's first step."""
        before_R = np.maximum(start_R - 1, user_start_R)
        known_again_R = self._known_again_N[before_R]
        # Values interpolated from a step that the row must not know are those of the gap in which it begins.
        is_unknown_R = (start_R > user_start_R) & (known_again_R >= may_depend_before_R) & (known_again_R < _NEVER)
        gap_R = np.where(is_unknown_R, self._gap_start_N[before_R], start_R)
        sums_R = self._total[gap_R] - self._total[user_start_R]
        sums_R += self._total_looking_back[start_R] - self._total_looking_back[gap_R]
        found = (
            self._session_N[start_R] - self._session_N[user_start_R],
            self._seconds_N[user_start_R],
            self._latest_N[before_R],
            sums_R,
        )
        return {name: pa.array(column, kind) for (name, kind), column in zip(_KINDS.items(), found, strict=True)}

    @staticmethod
    def none(num_rows: int) -> dict[str, pa.Array]:
        """The same columns where no outcome is asked about."""
        return {name: pa.nulls(num_rows, kind) for name, kind in _KINDS.items()}


def _totals(values_N: np.ndarray) -> np.ndarray:
    """What the first n values add up to as a row holds them, missing ones left out, [N+1]."""
    as_held_N = np.nan_to_num(values_N.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return np.append(0.0, np.cumsum(as_held_N, dtype=np.float64))
