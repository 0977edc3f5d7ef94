"""Which day a stage works as of (`as_of`), and the sessions as they were at its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.errors import DataError, UsageError
from llm_spark.transforms.as_of import sessions_before


@dataclass(frozen=True)
class AsOf:
    """A UTC day that events were logged on, or a later one."""

    day: date
    newest_day: date
    """Of the newest event."""

    @property
    def night(self) -> datetime:
        """The instant at which the day ends."""
        return end_of(self.day)

    @property
    def leaves_out(self) -> bool:
        """Whether there is an event after the night."""
        return self.day < self.newest_day

    def of(self, sessions: DataFrame) -> DataFrame:
        """The sessions as they were then."""
        return sessions_before(sessions, self.night) if self.leaves_out else sessions

    def note(self) -> dict[str, str]:
        """What a table's origin notes of it: nothing where nothing is left out, so that the same rows have the same origin."""
        return {"as_of": str(self.day)} if self.leaves_out else {}


def end_of(day: date) -> datetime:
    """The midnight after it."""
    return datetime.combine(day + timedelta(days=1), datetime.min.time())


def as_of_sessions(sessions: DataFrame, wanted: str | None) -> AsOf:
    """The setting held against the sessions; raises as `as_of_days` does, and DataError where there is no session."""
    span = sessions.agg(F.min("started_at").alias("first"), F.max("ended_at").alias("last")).first()
    if span is None or span["first"] is None:
        raise DataError(
            "the sessions table is empty: run `llm-spark ingest` and `llm-spark sessionize` on logs that hold events"
        )
    return as_of_days(wanted, span["first"].date(), span["last"].date())


def as_of_days(wanted: str | None, first_day: date, newest_day: date) -> AsOf:
    """UsageError for a day before the first event, or one that is still to come and later than the newest event."""
    if wanted is None:
        return AsOf(newest_day, newest_day)
    day, today = date.fromisoformat(wanted), datetime.now(UTC).date()
    if day < first_day:
        raise UsageError(f"as_of is {day}, before the first event ({first_day}): there is nothing to work from")
    if day > max(today, newest_day):
        raise UsageError(
            f"as_of is {day}, which is still to come (today is {today} in UTC, the newest event is of {newest_day}): give an earlier day"
        )
    return AsOf(day, newest_day)
