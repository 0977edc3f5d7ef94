"""What a night of scoring takes for granted."""

from __future__ import annotations

from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.pipelines.scoring_night import ScoringNight


@pytest.mark.parametrize(
    ("day_cut", "last_event", "is_open"),
    [
        (None, "2025-01-31 23:50:00", True),
        (None, "2025-01-31 23:29:00", False),
        # The day ends with the instant that the night is as of.
        ("UTC", "2025-01-31 23:50:00", False),
        # There it is 18:50, and then 19:00 of the same day.
        ("America/New_York", "2025-01-31 23:50:00", True),
        ("America/New_York", "2025-01-31 23:29:00", False),
    ],
)
def test_a_session_is_open_while_neither_its_gap_nor_its_day_has_ended(
    spark: SparkSession, day_cut: str | None, last_event: str, is_open: bool
) -> None:
    settings = SimpleNamespace(gap_seconds=1800, day_cut=day_cut)
    night: Any = SimpleNamespace(
        _one_session_a_user=False, instant=datetime(2025, 2, 1), config=SimpleNamespace(sessionize=settings)
    )
    epoch = int((datetime.fromisoformat(last_event) - datetime(1970, 1, 1)).total_seconds())
    found = spark.range(1).select(ScoringNight.session_open(night, F.lit(epoch)).alias("is_open")).first()
    assert found["is_open"] == is_open
    assert ScoringNight.instant.fget(SimpleNamespace(as_of=date(2025, 1, 31))) == night.instant  # type: ignore[attr-defined]
