"""What each row says of each second, against a count by hand and by brute force."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_spark.transforms.certificate_kernel import row_seconds

Row = tuple[str, list[int], int]  # user, event times, first target


def seconds_of(rows: list[Row], offset: int = 0) -> list[tuple]:
    batch = pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array([user for user, _, _ in rows], pa.string()),
            "split": pa.array(["test"] * len(rows), pa.string()),
            "event_times": pa.array([times for _, times, _ in rows], pa.list_(pa.int64())),
            "first_target": pa.array([first for _, _, first in rows], pa.int32()),
        }
    )
    found = row_seconds([batch.slice(offset)])
    return [tuple(row.values()) for out in found for row in out.to_pylist()]


def by_brute_force(rows: list[Row]) -> list[tuple]:
    expected = []
    for user, times, first in rows:
        for second in sorted(set(times)):
            places = [place for place, time in enumerate(times) if time == second]
            targets = [place for place in places if place >= first]
            early = [place for place in targets if any(time > second for time in times[:place])]
            expected.append((user, "test", second, len(places), len(targets), len(early)))
    return expected


def test_a_row_is_told_second_by_second() -> None:
    assert seconds_of([("u", [5, 7, 7, 6], 2), ("v", [7], 1)]) == [
        ("u", "test", 5, 1, 0, 0),
        ("u", "test", 6, 1, 1, 1),
        ("u", "test", 7, 2, 1, 0),
        ("v", "test", 7, 1, 0, 0),
    ]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("uv"), st.lists(st.integers(-5, 30), max_size=8), st.integers(0, 9)), max_size=6
    ),
    offset=st.integers(0, 3),
)
def test_every_row_is_told_as_counted_one_position_at_a_time(rows: list[Row], offset: int) -> None:
    assert seconds_of(rows, offset) == by_brute_force(rows[offset:])
