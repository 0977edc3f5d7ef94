"""Which sessions new events can change, and which events those sessions are made of.

Sessions are cut greedily along a run, a user's stretch of events without a gap (or, with the log's own session keys, a key's events). A
new event therefore changes nothing outside its run, and inside it nothing of the sessions that ended more than a gap before it. Where
sessions meet at one instant, which of the two an event of that instant belongs to depends on its id: they count as one.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

_PERSON = ("user_id", "session_key")


def touched(new_events: DataFrame, sessions: DataFrame, gap_seconds: int) -> DataFrame:
    """One row a new event and a session that the new events can change, told apart by session_id (null for an event).

    `new_events`: user_id, session_key (null where the gap rules), event_time. `sessions`: those before, at least all that end later than a
    gap before the earliest new event, and those that meet these at one instant. Out: user_id, session_key, run (number of its run),
    began_at, ended_at, session_id, num_events.
    """
    people = new_events.select(*_PERSON).distinct()
    of_people = sessions.alias("s").join(people.alias("p"), _same_person("s", "p"), "left_semi")
    stays = of_people.select(*_PERSON, F.col("started_at").alias("began_at"), "ended_at", "session_id", "num_events")
    no_session = {"session_id": F.lit(None).cast("string"), "num_events": F.lit(None).cast("int")}
    instants = new_events.select(*_PERSON, F.col("event_time").alias("began_at"), F.col("event_time").alias("ended_at"))
    intervals = stays.unionByName(instants.withColumns(no_session))

    gap = F.lit(gap_seconds * 1_000_000)
    by_time = Window.partitionBy(*_PERSON).orderBy("began_at", "ended_at", F.coalesce("session_id", F.lit("")))
    until_here = by_time.rowsBetween(Window.unboundedPreceding, 0)
    latest_before = F.max("ended_at").over(by_time.rowsBetween(Window.unboundedPreceding, -1))
    pause = F.unix_micros("began_at") - F.unix_micros("latest_before")
    goes_by_gap = F.col("session_key").isNull()
    placed = (
        intervals.withColumn("latest_before", latest_before)
        .withColumn("run", F.count_if(goes_by_gap & (pause > gap)).over(until_here))
        .withColumn("knot", F.count_if(pause > 0).over(until_here))
    )
    is_event = F.col("session_id").isNull()
    first_new = F.min(F.when(is_event, F.unix_micros("began_at"))).over(Window.partitionBy(*_PERSON, "run"))
    knot_end = F.max(F.unix_micros("ended_at")).over(Window.partitionBy(*_PERSON, "run", "knot"))
    judged = placed.withColumn("first_new", first_new).withColumn("knot_end", knot_end)
    reached = F.col("first_new").isNotNull() & (~goes_by_gap | (F.col("knot_end") >= F.col("first_new") - gap))
    return judged.where(reached).select(*_PERSON, "run", "began_at", "ended_at", "session_id", "num_events")


def spans(touched_rows: DataFrame) -> DataFrame:
    """The time that each touched run takes, day by day: user_id, session_key, event_date, from_time, to_time (both inclusive)."""
    by_run = touched_rows.groupBy(*_PERSON, "run").agg(
        F.min("began_at").alias("from_time"), F.max("ended_at").alias("to_time")
    )
    days = F.sequence(F.to_date("from_time"), F.to_date("to_time"), F.expr("interval 1 day"))
    return by_run.select(*_PERSON, F.explode(days).alias("event_date"), "from_time", "to_time")


def events_within(events: DataFrame, touched_spans: DataFrame, by_key: bool) -> DataFrame:
    """The events that fall into a span of their user (and session key). An event of no span is left out."""
    same = (F.col("e.user_id") == F.col("s.user_id")) & (F.col("e.event_date") == F.col("s.event_date"))
    if by_key:
        same &= F.col("e.session_key").eqNullSafe(F.col("s.session_key"))
    inside = F.col("e.event_time").between(F.col("s.from_time"), F.col("s.to_time"))
    return events.alias("e").join(touched_spans.alias("s"), same & inside, "left_semi")


def _same_person(left: str, right: str) -> Column:
    return (F.col(f"{left}.user_id") == F.col(f"{right}.user_id")) & F.col(f"{left}.session_key").eqNullSafe(
        F.col(f"{right}.session_key")
    )
