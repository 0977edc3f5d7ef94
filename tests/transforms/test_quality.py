"""Bots set aside and outliers clipped, on sessions worked out by hand and against numpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from llm_spark.config import BotsConfig, ClipValuesConfig
from llm_spark.transforms.quality import (
    Bounds,
    clip_values,
    collapse_repeats,
    fit_bounds,
    judge_sessions,
    kept_sessions,
    sessions_set_aside,
)
from tests.session_rows import session_row, sessions_frame

START = datetime(2025, 1, 1)


def sessions(spark: SparkSession, rows: Sequence[tuple[str, str, Sequence[float]]]) -> DataFrame:
    """Rows of (session, user, event times in seconds from the first midnight); items are all the same."""
    full = []
    for session_id, user, seconds in rows:
        times = [START + timedelta(seconds=second) for second in seconds]
        num = len(times)
        full.append(session_row(session_id, user, times, ["a"] * num, ["view"] * num, [None] * num))
    return sessions_frame(spark, full)


def valued(spark: SparkSession, rows: Sequence[tuple[str, float | None]]) -> DataFrame:
    """One session whose events have these types and values."""
    num = len(rows)
    types, values = [kind for kind, _ in rows], [value for _, value in rows]
    return sessions_frame(spark, [session_row("s", "u", [START] * num, ["a"] * num, types, values)])


def verdicts(judged: DataFrame) -> dict[str, tuple[str | None, str | None]]:
    return {row["session_id"]: (row["reason"], row["detail"]) for row in judged.collect()}


def test_a_session_faster_than_the_limit_is_set_aside_and_one_at_the_limit_is_kept(spark: SparkSession) -> None:
    two_minutes = [("at", "u", np.linspace(0, 120, 20)), ("over", "v", np.linspace(0, 120, 21))]
    found = verdicts(judge_sessions(sessions(spark, two_minutes), BotsConfig(max_events_per_minute=10)))
    assert found["at"] == (None, None)
    assert found["over"] == (
        "too_fast",
        "10.5 events per minute, more than sessionize.bots.max_events_per_minute 10",
    )


def test_a_few_clicks_within_seconds_are_no_bot_for_a_minute_counts_whole(spark: SparkSession) -> None:
    quick = [("quick", "u", [0, 1, 2]), ("single", "v", [5]), ("burst", "w", [0.1 * n for n in range(11)])]
    found = verdicts(judge_sessions(sessions(spark, quick), BotsConfig(max_events_per_minute=10)))
    assert [found[name][0] for name in ("quick", "single", "burst")] == [None, None, "too_fast"]


def test_a_session_of_more_events_than_the_limit_is_set_aside(spark: SparkSession) -> None:
    rows = [("at", "u", range(0, 3000, 1000)), ("over", "u", range(0, 4000, 1000))]
    found = verdicts(judge_sessions(sessions(spark, rows), BotsConfig(max_events=3)))
    assert found == {
        "at": (None, None),
        "over": ("too_many_events", "4 events, more than sessionize.bots.max_events 3"),
    }


def test_all_sessions_that_touch_a_day_with_too_many_events_of_the_user_are_set_aside(spark: SparkSession) -> None:
    day = 86_400
    rows = [
        ("morning", "u", [100, 200]),
        ("over midnight", "u", [day - 10, day + 10]),  # the third event of the first day
        ("next day", "u", [day + 5_000]),
        ("someone else", "v", [100, 200]),
    ]
    found = verdicts(judge_sessions(sessions(spark, rows), BotsConfig(max_events_per_day=2)))
    said = "3 events of the user on one day, more than sessionize.bots.max_events_per_day 2"
    assert found == {
        "morning": ("too_many_events_a_day", said),
        "over midnight": ("too_many_events_a_day", said),
        "next day": (None, None),
        "someone else": (None, None),
    }


def test_without_limits_every_session_is_kept(spark: SparkSession) -> None:
    frame = sessions(spark, [("s", "u", [0] * 500)])
    assert verdicts(judge_sessions(frame, BotsConfig())) == {"s": (None, None)}


def test_every_session_is_either_kept_as_it_was_or_set_aside_as_it_was(spark: SparkSession) -> None:
    frame = sessions(spark, [("s", "u", [0, 1]), ("t", "u", [0]), ("u", "v", [0, 1, 2])])
    judged = judge_sessions(frame, BotsConfig(max_events=1, max_events_per_day=5))
    kept, aside = kept_sessions(judged), sessions_set_aside(judged)
    assert kept.columns == frame.columns
    assert sorted(kept.unionByName(aside.drop("reason", "detail")).collect()) == sorted(frame.collect())
    assert [row["session_id"] for row in kept.collect()] == ["t"]


def test_collapsed_sessions_have_the_columns_of_the_table_and_count_what_is_gone(spark: SparkSession) -> None:
    found = collapse_repeats(sessions(spark, [("s", "u", [0, 1, 2])]))
    assert found.schema == sessions(spark, []).schema
    (row,) = found.collect()
    assert (row["num_events"], row["num_collapsed"], row["item_ids"]) == (1, 2, ["a"])
    assert row["ended_at"] == START + timedelta(seconds=2)


def bounds_of(frame: DataFrame, config: ClipValuesConfig) -> dict[str, tuple[float, float, int, int]]:
    rows = fit_bounds(frame, config).collect()
    return {row["event_type"]: (row["low"], row["high"], row["num_values"], row["num_outside"]) for row in rows}


def test_median_and_deviation_are_taken_for_each_type_and_missing_values_do_not_count(spark: SparkSession) -> None:
    # Median 3, deviations 2 1 0 1 97: their median is 1.
    rows = [*[("buy", value) for value in (1.0, 2.0, 3.0, 4.0, 100.0, None)], *[("view", v) for v in (0.0, 10.0)]]
    config = ClipValuesConfig(method="mad", num_mads=2, min_values=2)
    assert bounds_of(valued(spark, rows), config) == {"buy": (1.0, 5.0, 5, 1), "view": (-5.0, 15.0, 2, 0)}


def test_where_most_values_are_equal_the_mean_deviation_stands_in(spark: SparkSession) -> None:
    # Median 1, deviations 0 0 0 8: their mean 2, by 1.253314 / 1.482602.
    frame = valued(spark, [("buy", value) for value in (1.0, 1.0, 1.0, 9.0)])
    (found,) = bounds_of(frame, ClipValuesConfig(method="mad", num_mads=1, min_values=1)).values()
    assert found[:2] == pytest.approx((1 - 2 * 0.845347, 1 + 2 * 0.845347), rel=1e-5)


@pytest.mark.parametrize("method", ["mad", "quantile"])
def test_types_of_one_value_or_of_too_few_are_left_alone(spark: SparkSession, method: str) -> None:
    rows = [*[("same", 7.0)] * 9, *[("few", float(n)) for n in range(4)], ("none", None)]
    assert bounds_of(valued(spark, rows), ClipValuesConfig(method=method, min_values=5)) == {}


def test_quantiles_agree_with_numpy_to_the_digits_that_are_kept(spark: SparkSession) -> None:
    values = np.random.default_rng(1).lognormal(3, 2, 500) * np.where(np.arange(500) % 7, 1, -1)
    config = ClipValuesConfig(method="quantile", low_quantile=0.02, high_quantile=0.9)
    low, high, num_values, num_outside = bounds_of(valued(spark, [("buy", float(v)) for v in values]), config)["buy"]
    assert (low, high) == pytest.approx(np.quantile(values, [0.02, 0.9]), rel=1e-3)
    assert (num_values, num_outside) == (500, 10 + 50)


def test_values_of_any_magnitude_keep_four_digits(spark: SparkSession) -> None:
    values = [-1e300, -123456.0, -0.000123456, 0.0, 5e-324, 0.3, 9999.5, 1e300]
    config = ClipValuesConfig(method="quantile", low_quantile=0.0, high_quantile=1.0, min_values=1)
    pairs = {f"{low}": (low, high) for low, high in itertools.pairwise(values)}
    found = bounds_of(valued(spark, [(kind, value) for kind, pair in pairs.items() for value in pair]), config)
    for kind, (low, high) in pairs.items():
        assert found[kind][:2] == pytest.approx((low, high), rel=5e-4, abs=0)


def test_values_are_clipped_to_the_bounds_of_their_type(spark: SparkSession) -> None:
    rows = [("buy", -5.0), ("buy", 50.0), ("buy", 3.0), ("buy", None), ("view", 1e9)]
    (row,) = clip_values(valued(spark, rows), {"buy": Bounds(0.0, 10.0)}).collect()
    assert row["event_values"] == [0.0, 10.0, 3.0, None, 1e9]


def test_clipping_again_changes_nothing_and_no_bounds_clip_nothing(spark: SparkSession) -> None:
    frame = valued(spark, [("buy", float(n)) for n in range(20)])
    once = clip_values(frame, {"buy": Bounds(3.0, 11.5)})
    assert clip_values(once, {"buy": Bounds(3.0, 11.5)}).collect() == once.collect()
    assert clip_values(frame, {}).collect() == frame.collect()
