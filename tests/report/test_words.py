"""Numbers and names as people read them."""

from __future__ import annotations

import pytest

from llm_spark.report.words import blocks, counts, duration, named, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.58312, "0.583"),
        (0.0123456, "0.0123"),
        (0.00001234, "1.2e−05"),
        (-0.031, "−0.0310"),
        (12.345, "12.3"),
        (412_117.4, "412,117"),
        (float("nan"), "no number"),
        (float("inf"), "infinite"),
        (None, "–"),
    ],
)
def test_a_number_shows_the_digits_that_matter(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_difference_shows_its_sign() -> None:
    assert [number(value, signed=True) for value in (0.012, 0.0, -0.012)] == ["+0.0120", "0", "−0.0120"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.34, "2.3 s"), (61.2, "1 min 1 s"), (4_511.0, "1 h 15 min"), (None, "did not finish")]
)
def test_a_duration_is_told_in_its_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_counts_leave_out_what_did_not_occur_unless_it_is_all_there_is() -> None:
    assert counts({"bad_time": 1_200, "too_long": 0}) == ["1,200 bad time"]
    assert counts({"events": 0}) == ["0 events"]


def test_metrics_are_named_as_people_write_them() -> None:
    assert [named(name) for name in ("mrr@5", "popularity_bias@20", "item_knn")] == [
        "MRR@5",
        "popularity bias@20",
        "item knn",
    ]


def test_remarks_set_in_columns_are_kept_together() -> None:
    remarks = ["a sentence", "      recall  mrr", "model  0.1  0.2", "another sentence"]
    assert list(blocks(remarks)) == [(False, ["a sentence"]), (True, remarks[1:3]), (False, ["another sentence"])]
