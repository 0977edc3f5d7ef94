"""Laws that no leak can keep, counted over the tables as they stand: how often each is broken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.schemas import SPLITS
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms.certificate_kernel import row_seconds
from llm_spark.transforms.history_kernel import BY_TIME, LEAVE_LAST_EVENT_OUT
from llm_spark.transforms.splits import SplitTimes, event_places, training_sessions

LAWS = {
    "rows_are_whole": "rows whose lists differ in length or that predict nothing",
    "training_precedes_evaluation": "rows (users, where the last is left out) that know an event later than what is evaluated",
    "no_session_in_two_splits": "sessions predicted in more than one split",
    "no_event_predicted_twice": "predictions beyond one for each event of the sessions",
    "no_target_in_its_own_input": "events that stand in a row more often than they happened, or are evaluated with their future in the input",
    "every_event_in_its_split": "events of a split that it does not predict, or predictions of events that are not its own",
    "vocabulary_from_training": "items and event types known without having occurred often enough in training",
}
"""Each law's name and what of it is counted: 0 where it holds."""

_ROW_SECONDS = "user_id string, split string, second long, num_here int, num_targets int, num_early_targets int"


def laws_of(split: str) -> list[str]:
    """The laws that hold under a kind of split: where the last event is left out, its session lies in several splits by intention."""
    return [name for name in LAWS if split != LEAVE_LAST_EVENT_OUT or name != "no_session_in_two_splits"]


@dataclass(frozen=True)
class Bounds:
    """Epoch seconds over the whole table; None where it has no such row."""

    latest_training: int | None
    earliest_validation: int | None
    latest_validation: int | None
    earliest_test: int | None
    """`latest`: of all that the split's rows hold; `earliest`: of what they predict."""

    @property
    def evaluation_begins(self) -> int | None:
        return min((at for at in (self.earliest_validation, self.earliest_test) if at is not None), default=None)


def _targets(array: str) -> Column:
    first = F.greatest(F.col("first_target"), F.lit(0)) + 1
    return F.slice(array, first, F.greatest(F.size(array), F.lit(1)))


def row_bounds(sequences: DataFrame) -> DataFrame:
    """One row: num_broken_rows, and the columns of `Bounds`."""
    whole = F.col("first_target").between(1, F.size("tokens") - 1) & (F.element_at("session_starts", 1) == 0)
    for name in ("event_types", "values", "event_times"):
        whole = whole & (F.size(name) == F.size("tokens"))
    return sequences.agg(F.count_if(~F.coalesce(whole, F.lit(False))).alias("num_broken_rows"), *_bounds())


def _bounds() -> list[Column]:
    latest, earliest = F.array_max("event_times"), F.array_min(_targets("event_times"))

    def of(split: str, time: Column) -> Column:
        return F.when(F.col("split") == split, time)

    return [
        F.max(of("train", latest)).alias("latest_training"),
        F.min(of("validation", earliest)).alias("earliest_validation"),
        F.max(of("validation", latest)).alias("latest_validation"),
        F.min(of("test", earliest)).alias("earliest_test"),
    ]


def num_late_rows(sequences: DataFrame, bounds: Bounds) -> DataFrame:
    """One row, num: rows of training (validation) that hold an event as late as the earliest evaluated (tested) one."""
    latest = F.array_max("event_times")
    late = F.lit(False)
    for split, begins in (("train", bounds.evaluation_begins), ("validation", bounds.earliest_test)):
        if begins is not None:
            late = late | ((F.col("split") == split) & (latest >= begins))
    return sequences.agg(F.count_if(late).alias("num"))


def num_late_users(sequences: DataFrame) -> DataFrame:
    """One row, num: users whose training (validation) holds an event later than their earliest evaluated (tested) one."""
    begins = F.least("earliest_validation", "earliest_test")
    late = (F.col("latest_training") > begins) | (F.col("latest_validation") > F.col("earliest_test"))
    return sequences.groupBy("user_id").agg(*_bounds()).agg(F.count_if(late).alias("num"))


def accounts_of_events(sequences: DataFrame, sessions: DataFrame, split: str, times: SplitTimes | None) -> DataFrame:
    """One row, a column for each law that sets the positions of the sequences against the events of the sessions.

    Both sides meet at the same user and second. Where two sessions share one, it says nothing of the session that is predicted there.
    """

    def run_kernel(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return row_seconds(batches)

    # One number in place of user and second: two of them that collide add up, and break no law that holds for each.
    second = F.xxhash64("user_id", "second").alias("moment")
    seen = sequences.select("user_id", "split", "event_times", "first_target").mapInArrow(run_kernel, _ROW_SECONDS)
    predicted = [F.when(F.col("split") == name, F.col("num_targets")).otherwise(0).alias(name) for name in SPLITS]
    # Sessions of one user that overlap are trained on in the order of their ends; what is evaluated must not see its future.
    early = F.when(F.col("split") != "train", F.col("num_early_targets")).otherwise(0).alias("num_early_targets")
    positions = seen.select(second, *predicted, "num_here", early)
    events = event_places(sessions, split, times).withColumn("second", F.unix_seconds("event_time"))
    expected = [(F.col("split") == name).cast("int").alias(f"expected_{name}") for name in SPLITS]
    events = events.select(second, F.xxhash64("session_id").alias("session"), F.lit(1).alias("num_events"), *expected)
    both = positions.unionByName(events, allowMissingColumns=True).groupBy("moment")
    totals = [F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in ("num_events", "num_early_targets", *SPLITS)]
    totals += [F.coalesce(F.sum(f"expected_{name}"), F.lit(0)).alias(f"expected_{name}") for name in SPLITS]
    moments = both.agg(
        *totals,
        F.coalesce(F.max("num_here"), F.lit(0)).alias("num_here"),
        F.min("session").alias("session"),
        (F.min("session") == F.max("session")).alias("is_one_session"),
    )

    def beyond(number: Column) -> Column:
        return F.sum(F.greatest(number - F.col("num_events"), F.lit(0)))

    misplaced = sum((F.abs(F.col(name) - F.col(f"expected_{name}")) for name in SPLITS), F.lit(0))
    by_session = moments.groupBy(F.when(F.col("is_one_session"), F.col("session")).alias("session")).agg(
        beyond(sum((F.col(name) for name in SPLITS), F.lit(0))).alias("twice"),
        (beyond(F.col("num_here")) + F.sum("num_early_targets")).alias("in_input"),
        F.sum(misplaced).alias("misplaced"),
        sum((F.max(F.col(name) > 0).cast("int") for name in SPLITS), F.lit(0)).alias("num_splits"),
    )
    return by_session.agg(
        F.coalesce(F.sum("twice"), F.lit(0)).alias("no_event_predicted_twice"),
        F.coalesce(F.sum("in_input"), F.lit(0)).alias("no_target_in_its_own_input"),
        F.coalesce(F.sum("misplaced"), F.lit(0)).alias("every_event_in_its_split"),
        F.count_if(F.col("session").isNotNull() & (F.col("num_splits") > 1)).alias("no_session_in_two_splits"),
    )


@dataclass(frozen=True)
class Coding:
    """One of the two code tables: `rows` with `token`, and how its codes stand in sequences and sessions."""

    rows: DataFrame
    name: str
    """The column of what is coded: item_id, event_type."""
    in_sequences: str
    in_sessions: str
    added_from: int
    """The first token that was added for these sequences; smaller ones were known from earlier nights."""
    min_count: int


def unlearned(
    coding: Coding,
    sequences: DataFrame,
    sessions: DataFrame,
    split: str,
    times: SplitTimes | None,
    evaluation_begins: int | None,
) -> DataFrame:
    """`token` and `name` of codes that are in use, or were added, without training to have taught them.

    A code in use must occur in training, one that was added at least `min_count` times, and by time all of that before the first evaluated
    event. Tables of codes are append-only: a code of an earlier night is certified by the night that added it, and here only if it is used.
    """
    trained = training_sessions(sessions, split, times)
    if split != BY_TIME:
        evaluation_begins = None
    zipped = F.explode(F.arrays_zip(F.col(coding.in_sessions).alias("code"), F.col("event_times").alias("time")))
    steps = trained.select(zipped.alias("step")).select(
        F.col("step.code").alias(coding.name), F.unix_seconds("step.time").alias("second")
    )
    if evaluation_begins is not None:
        steps = steps.where(F.col("second") < evaluation_begins)
    counts = steps.groupBy(coding.name).agg(F.count("*").alias("num_trained"))
    used = sequences.select(F.explode(coding.in_sequences).alias("token")).distinct().withColumn("is_used", F.lit(True))
    used = used.where(F.col("token") >= FIRST_ITEM_TOKEN)
    codes = coding.rows.select("token", coding.name, "first_seen_at").join(used, "token", "full")
    codes = codes.join(counts, coding.name, "left").na.fill(0, ["num_trained"]).na.fill(False, ["is_used"])
    is_added = F.col("token") >= coding.added_from
    least = F.when(is_added, F.lit(coding.min_count)).otherwise(F.lit(1))
    wrong = F.col("num_trained") < least
    if evaluation_begins is not None:
        wrong = wrong | (is_added & (F.unix_seconds("first_seen_at") >= evaluation_begins))
    return codes.where((F.col("is_used") | is_added) & wrong).select("token", F.col(coding.name).alias("name"))
