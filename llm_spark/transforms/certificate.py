"""Laws that no leak can keep, counted over the tables as they stand: how often each is broken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from llm_spark.schemas import SPLITS
from llm_spark.tokens import FIRST_ITEM_TOKEN, UNKNOWN_TOKEN
from llm_spark.transforms.certificate_kernel import row_seconds
from llm_spark.transforms.history_kernel import BY_TIME, LEAVE_LAST_EVENT_OUT
from llm_spark.transforms.splits import SplitTimes, event_places, training_sessions

LAWS = {
    "rows_are_whole": "rows whose lists differ in length or that neither predict nor ask anything",
    "training_precedes_evaluation": "rows (users, where the last is left out) that know an event later than what is evaluated",
    "no_session_in_two_splits": "sessions predicted in more than one split",
    "no_event_predicted_twice": "predictions beyond one for each event of the sessions",
    "no_target_in_its_own_input": "events that stand in a row more often than they happened, or are evaluated with their future in the input",
    "every_event_in_its_split": "events of a split that it does not predict, or predictions of events that are not its own",
    "contents_are_the_events": "pairs of neighbours in a row that do not follow one another so in the sessions",
    "labels_close_in_their_split": "outcome labels that look at or beyond the time up to which their split may know",
    "vocabulary_from_training": "items and event types known without having occurred often enough in training",
}
"""Each law's name and what of it is counted: 0 where it holds."""

MAX_POSITIONS_COMPARED = 500_000
"""About as many positions have their contents compared; of more, those of a share of the users."""

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
    """One row: num_broken_rows, the broken_row that comes first, num_positions, and the columns of `Bounds`."""
    # Where outcomes are asked about, a row may predict nothing.
    last = F.size("tokens") - F.when(F.size("outcome_labels") > 0, 0).otherwise(1)
    whole = F.col("first_target").between(1, last) & (F.element_at("session_starts", 1) == 0)
    for name in ("event_types", "values", "event_times"):
        whole = whole & (F.size(name) == F.size("tokens"))
    broken = ~F.coalesce(whole, F.lit(False))
    return sequences.agg(
        F.count_if(broken).alias("num_broken_rows"),
        F.min(F.when(broken, F.col("sequence_id"))).alias("broken_row"),
        F.coalesce(F.sum(F.size("tokens")), F.lit(0)).alias("num_positions"),
        *_bounds(),
    )


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
    """One row: num, rows of training (validation) that hold an event as late as the earliest evaluated (tested) one, and the first such row,
    late_row."""
    latest = F.array_max("event_times")
    late = F.lit(False)
    for split, begins in (("train", bounds.evaluation_begins), ("validation", bounds.earliest_test)):
        if begins is not None:
            late = late | ((F.col("split") == split) & (latest >= begins))
    return sequences.agg(F.count_if(late).alias("num"), F.min(F.when(late, F.col("sequence_id"))).alias("late_row"))


def num_late_users(sequences: DataFrame) -> DataFrame:
    """One row: num, users whose training (validation) holds an event later than their earliest evaluated (tested) one, and a row of one of
    them, late_row."""
    begins = F.least("earliest_validation", "earliest_test")
    late = (F.col("latest_training") > begins) | (F.col("latest_validation") > F.col("earliest_test"))
    users = sequences.groupBy("user_id").agg(F.min("sequence_id").alias("a_row"), *_bounds())
    return users.agg(F.count_if(late).alias("num"), F.min(F.when(late, F.col("a_row"))).alias("late_row"))


def accounts_of_events(sequences: DataFrame, sessions: DataFrame, split: str, times: SplitTimes | None) -> DataFrame:
    """One row, a column for each law that sets the positions of the sequences against the events of the sessions, and beside it one of its name
    and `_session`: xxhash64 of the id of a session where it is broken, null where none can be told.

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
    in_two_splits = (F.col("session").isNotNull() & (F.col("num_splits") > 1)).cast("int")
    by_law = {
        "no_event_predicted_twice": F.col("twice"),
        "no_target_in_its_own_input": F.col("in_input"),
        "every_event_in_its_split": F.col("misplaced"),
        "no_session_in_two_splits": in_two_splits,
    }
    counts = [F.coalesce(F.sum(number), F.lit(0)).alias(name) for name, number in by_law.items()]
    where = [F.min(F.when(number > 0, F.col("session"))).alias(f"{name}_session") for name, number in by_law.items()]
    return by_session.agg(*counts, *where)


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


@dataclass(frozen=True)
class Contents:
    """What of an event is compared beside its second, item and type."""

    with_values: bool
    """Not where missing ones were filled: the sessions do not hold what was filled in."""
    num_features: int
    one_user_in: int
    """Users, by hash, of whom one is looked at."""

    @classmethod
    def of(cls, num_positions: int, with_values: bool, num_features: int) -> Contents:
        return cls(with_values, num_features, max(1, math.ceil(num_positions / MAX_POSITIONS_COMPARED)))


def misplaced_contents(
    sequences: DataFrame,
    sessions: DataFrame,
    items: Coding,
    types: Coding,
    split: str,
    times: SplitTimes | None,
    contents: Contents,
) -> DataFrame:
    """One row: num, pairs of neighbours in a row that the user's history does not hold, and xxhash64 of the id of such a row, row.

    A row is a stretch of the history, so each pair of neighbours in it stands there too, in the same order: tokens that are shifted against
    their times, exchanged or another user's do not. A row of one event is held against the history's first. An item or type that training
    does not teach is unknown. `sessions` with their values clipped as the rows' are. Not looked at are session_starts, values where missing
    ones were filled, what outcome labels say, and other users than one in `contents.one_user_in`.
    """
    is_looked_at = F.pmod(F.xxhash64("user_id"), F.lit(contents.one_user_in)) == 0
    in_rows = _pairs_of_rows(sequences.where(is_looked_at), contents)
    tokens, codes = (_taught(coding, training_sessions(sessions, split, times)) for coding in (items, types))
    in_history = _pairs_of_history(sessions.where(is_looked_at), tokens, F.broadcast(codes), items, types, contents)
    both = in_rows.unionByName(in_history, allowMissingColumns=True).groupBy("pair")
    pairs = both.agg(F.min("row").alias("row"), F.max("is_there").alias("is_there"))
    return pairs.where(F.col("is_there").isNull()).agg(F.count("*").alias("num"), F.min("row").alias("row"))


def _event_hash(
    second: Column, token: Column, event_type: Column, value: Column, features: Column, contents: Contents
) -> Column:
    parts = [second, token, event_type]
    # A null leaves a hash as it was.
    parts += [value.isNull(), value] if contents.with_values else []
    parts += [features] if contents.num_features else []
    return F.xxhash64(*parts)


def _pairs_of_rows(sequences: DataFrame, contents: Contents) -> DataFrame:
    """pair and row, xxhash64 of its id; a pair that a row has several times once."""

    def hashed(event: Column, place: Column) -> Column:
        size = F.lit(contents.num_features)
        features = F.slice("features", place * size + 1, size)
        return _event_hash(
            event["event_times"], event["tokens"], event["event_types"], event["values"], features, contents
        )

    zipped = F.arrays_zip("event_times", "tokens", "event_types", "values")
    rows = sequences.select(
        F.xxhash64("sequence_id").alias("row"), "user_id", F.transform(zipped, hashed).alias("events")
    )
    num_pairs = F.greatest(F.size("events") - 1, F.lit(0))
    earlier, later = (F.slice("events", F.lit(first), num_pairs) for first in (1, 2))
    neighbours = F.zip_with(earlier, later, lambda one, other: F.xxhash64("user_id", one, other))
    alone = F.transform("events", lambda only: F.xxhash64("user_id", only))
    pairs = F.array_distinct(F.when(num_pairs > 0, neighbours).otherwise(alone))
    return rows.select("row", F.explode(pairs).alias("pair"))


def _taught(coding: Coding, trained: DataFrame) -> DataFrame:
    """The rows of a code table that training has taught."""
    known = trained.select(F.explode(coding.in_sessions).alias(coding.name)).distinct()
    return coding.rows.select(coding.name, "token").join(known, coding.name, "left_semi")


def _pairs_of_history(
    sessions: DataFrame, tokens: DataFrame, codes: DataFrame, items: Coding, types: Coding, contents: Contents
) -> DataFrame:
    """pair and is_there, true, of each two events that follow one another in a user's history, and of its first alone."""
    carried = ["event_features"] if contents.num_features else []
    zipped = F.arrays_zip("event_times", items.in_sessions, types.in_sessions, "event_values", *carried)
    events = sessions.select("user_id", "ended_at", "session_id", F.posexplode(zipped).alias("place", "event"))
    value = F.col("event.event_values").cast("float")
    features = F.col("event.event_features").cast("array<float>") if carried else F.lit(None)
    named = events.select(
        "user_id",
        "ended_at",
        "session_id",
        "place",
        F.unix_seconds("event.event_times").alias("second"),
        F.col(f"event.{items.in_sessions}").alias(items.name),
        F.col(f"event.{types.in_sessions}").alias(types.name),
        F.when(~F.isnan(value), value).alias("value"),
        features.alias("features"),
    )
    coded = named.join(tokens.withColumnRenamed("token", "item"), items.name, "left").join(
        codes.withColumnRenamed("token", "type"), types.name, "left"
    )
    item, kind = (F.coalesce(name, F.lit(UNKNOWN_TOKEN)) for name in ("item", "type"))
    hashed = _event_hash(F.col("second"), item, kind, F.col("value"), F.col("features"), contents)
    steps = coded.select("user_id", "ended_at", "session_id", "place", hashed.alias("event"))
    history = Window.partitionBy("user_id").orderBy("ended_at", "session_id", "place")
    pairs = steps.select(F.xxhash64("user_id", F.lag("event").over(history), "event").alias("pair"))
    return pairs.withColumn("is_there", F.lit(True))


def open_labels(sequences: DataFrame, windows: Sequence[int], known_until: Mapping[str, int]) -> DataFrame:
    """One row: num, outcome labels whose window is not closed before the time up to which their split may know, and a row of such, row.

    `windows` of the outcomes in order and `known_until` of each split, in (epoch) microseconds. A label is of the time from the latest event
    up to its place on; where that cannot be told, or no outcome is known, it counts.
    """
    place = F.col("outcome_places")
    # Mostly the event at the place is the latest: only in training, and where sessions overlap, an earlier one is.
    is_in_order = F.col("event_times") == F.array_sort("event_times")
    limit = F.coalesce(*[F.when(F.col("split") == name, F.lit(until)) for name, until in known_until.items()], F.lit(0))

    def is_open(label: Column, index: Column) -> Column:
        if not windows:
            return label.isNotNull()
        outcome = index % F.lit(len(windows))
        moment = ((index - outcome) / F.lit(len(windows))).cast("int")
        known = F.get(place, moment)
        latest = F.when(is_in_order, F.get("event_times", known)).otherwise(
            F.array_max(F.slice("event_times", F.lit(1), F.greatest(known, F.lit(0)) + 1))
        )
        asked = (latest + F.get("outcome_elapsed_seconds", moment)) * F.lit(1_000_000)
        window = F.get(F.array(*[F.lit(window) for window in windows]), outcome)
        return label.isNotNull() & ~F.coalesce(asked + window < limit, F.lit(False))

    num = F.coalesce(F.size(F.filter("outcome_labels", is_open)), F.lit(0))
    rows = sequences.where(F.col("outcome_labels").isNotNull()).select("sequence_id", num.alias("num"))
    return rows.agg(
        F.coalesce(F.sum("num"), F.lit(0)).alias("num"),
        F.min(F.when(F.col("num") > 0, F.col("sequence_id"))).alias("row"),
    )
