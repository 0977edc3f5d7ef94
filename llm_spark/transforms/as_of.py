"""The sessions as they were on an earlier night."""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.transforms.splits import ARRAYS


def sessions_before(sessions: DataFrame, night: datetime) -> DataFrame:
    """The sessions, in their columns, without the events at or after `night` (naive UTC); those that began then are left out.

    A session that goes on past the night ends with its last event before it, and keeps its id, which its first event makes. What repeated
    an event and was collapsed (`num_collapsed`) has no time of its own and stays counted.
    """
    at_night = F.lit(night)
    goes_on = F.col("ended_at") >= at_night
    num_left = F.size(F.filter("event_times", lambda time: time < at_night))
    cut = {
        name: F.when(goes_on, F.slice(name, F.lit(1), num_left)).otherwise(F.col(name))
        for name in ARRAYS
        if name in sessions.columns
    }
    cut["num_events"] = F.when(goes_on, num_left).otherwise(F.col("num_events"))
    # Events stand in the order of their time.
    cut["ended_at"] = F.when(goes_on, F.element_at("event_times", num_left)).otherwise(F.col("ended_at"))
    return sessions.where(F.col("started_at") < at_night).withColumns(cut)
