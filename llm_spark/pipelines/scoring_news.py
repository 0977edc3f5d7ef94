"""Whom a night of scoring is about: all users, or those with news since the night that user_memory was made on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.pipelines.as_of import end_of
from llm_spark.pipelines.scoring_night import ScoringNight
from llm_spark.schemas import PREDICTIONS, SESSIONS, USER_MEMORY
from llm_spark.tables.changes import changed_parts
from llm_spark.tokens import FALLBACK, FIRST_ITEM_TOKEN, WITHDRAWN
from llm_spark.transforms.as_of import sessions_before
from llm_spark.transforms.sequences import whole_histories
from llm_spark.transforms.session_changes import kept_steps, session_changes, touched_users
from llm_spark.transforms.sessions import user_bucket

_PAST_COLUMNS = ("model_id", "memory", "past", "earlier_tokens", "earlier_event_types")


@dataclass(frozen=True)
class All:
    """Every user, from his first event on."""

    night: ScoringNight
    histories: DataFrame

    def kept_predictions(self, states: DataFrame) -> DataFrame:
        """Of the day's rows those that stay. On an earlier day these are the lists that are still served, and that a user had no session any
        more; what came after says whether he has.
        """
        of_day = _predictions(self.night).where(F.col("as_of_date") == F.lit(self.night.as_of))
        gone = of_day.where(F.lit(self.night.is_earlier) & (F.col("source") == WITHDRAWN))
        served = of_day.join(self.served(), "user_id", "left_semi")
        gone = gone.join(states.select("user_id"), "user_id", "left_anti")
        return served.unionByName(gone.select(of_day.columns)).unionByName(self._of_former_model(of_day, states))

    def _of_former_model(self, of_day: DataFrame, states: DataFrame) -> DataFrame:
        """The lists that are served until user_memory is this model's: of a model that has scored the same day."""
        if self.night.former_model is None:
            return of_day.limit(0)
        of_day = of_day.join(states.select("user_id"), "user_id", "left_semi")
        memory = self.night.warehouse.read(USER_MEMORY).select("user_id", F.col("model_id").alias("known_model"))
        known = of_day.join(memory, "user_id")
        return known.where(F.col("model_id") == F.col("known_model")).select(of_day.columns)

    def served(self) -> DataFrame:
        """On an earlier day the users whose lists of that day are the newest they have (user_id); else nobody."""
        # Of an earlier version of this program it may have other columns: then it is made anew, and not read.
        if not self.night.is_earlier:
            return _nobody(self.night)
        memory = self.night.warehouse.read_or_empty(USER_MEMORY)
        return memory.where(F.col("as_of_date") == F.lit(self.night.as_of)).select("user_id")

    def without_history(self, states: DataFrame) -> DataFrame:
        """Users who have predictions and no session any more: user_id."""
        newest = _newest_lists(self.night)
        known = newest.where(~F.col("source").eqNullSafe(WITHDRAWN) & ~F.lit(self.night.is_earlier))
        return known.select("user_id").join(states.select("user_id"), "user_id", "left_anti")

    def strangers(self) -> DataFrame:
        """Nobody: who is known to be one is among the histories."""
        return _nobody(self.night)

    def states_of_all(self, states: DataFrame) -> DataFrame:
        """Of all users what the model keeps tonight."""
        return states.withColumn("model_id", F.lit(self.night.model.model_id))

    def counts(self, states: DataFrame) -> dict[str, int]:
        """For the account; nobody's state was of use."""
        return {"users_advanced": 0, "users_replayed": states.count(), "users_kept": 0}

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class News:
    """The users whose sessions changed, whose last session has closed, or who are offered other things; held in Spark's cache until `release`."""

    night: ScoringNight
    histories: DataFrame
    """Of each the steps since his past, and the past; of a user who is replayed, all steps."""
    touched: DataFrame
    changes: DataFrame
    num_touched: int
    parts: str
    """The parts of user_memory that hold them, a predicate."""
    offers_differ: bool

    def kept_predictions(self, states: DataFrame) -> DataFrame:
        """Of the day's rows those that stay: of users without news, as far as user_memory knows of them. Others are of a run that was killed."""
        of_day = _predictions(self.night).where(F.col("as_of_date") == F.lit(self.night.as_of))
        untouched = of_day.join(self.touched.select("user_id"), "user_id", "left_anti")
        memory = self.night.warehouse.read(USER_MEMORY)
        known = memory.select("user_id", F.col("as_of_date").alias("newest_date"))
        both = untouched.join(known, "user_id", "left")
        of_known = F.col("newest_date") == F.lit(self.night.as_of)
        of_gone = F.col("newest_date").isNull() & (F.col("source") == WITHDRAWN)
        return both.where(F.coalesce(of_known | of_gone, F.lit(False))).select(of_day.columns)

    def kept_memory(self) -> DataFrame:
        """Of the parts' rows those that stay."""
        return self._untouched().where(self.parts).select(USER_MEMORY.schema.names)

    def served(self) -> DataFrame:
        """Nobody: this is the newest day."""
        return _nobody(self.night)

    def without_history(self, states: DataFrame) -> DataFrame:
        """Users who have no session any more; and where other things are offered, those who may be shown a fallback that there is no more."""
        gone = (
            self.touched.where("is_replayed").select("user_id").join(states.select("user_id"), "user_id", "left_anti")
        )
        if not self.offers_differ or self.night.config.score.fallback_days:
            return gone
        shown = _newest_lists(self.night).where(F.col("source") == FALLBACK).select("user_id")
        return gone.unionByName(shown.join(states.select("user_id"), "user_id", "left_anti")).distinct()

    def strangers(self) -> DataFrame:
        """Users without news of whose newest events the model knows none: what is popular tonight is popular with them, too (user_id)."""
        max_tokens = self.night.config.sequences.max_tokens
        newest = F.slice(F.reverse(F.concat("earlier_tokens", "tokens")), 1, max_tokens)
        is_stranger = ~F.exists(newest, lambda token: token >= FIRST_ITEM_TOKEN)
        return self._untouched().where(is_stranger).select("user_id")

    def states_of_all(self, states: DataFrame) -> DataFrame:
        """Of all users what the model keeps tonight, those without news included."""
        new_states = states.withColumn("model_id", F.lit(self.night.model.model_id))
        columns = [name for name in USER_MEMORY.schema.names if name in new_states.columns]
        return self._untouched().select(columns).unionByName(new_states.select(columns))

    def _untouched(self) -> DataFrame:
        memory = self.night.warehouse.read(USER_MEMORY)
        return memory.join(self.touched.select("user_id"), "user_id", "left_anti")

    def counts(self, states: DataFrame) -> dict[str, int]:
        """For the account: users whose state went on, whose was of no use, and who had no news."""
        num_scored = states.count()
        replayed = self.touched.where("is_replayed").select("user_id")
        num_replayed = states.join(replayed, "user_id", "left_semi").count()
        return {
            "users_advanced": num_scored - num_replayed,
            "users_replayed": num_replayed,
            "users_kept": self._untouched().count(),
        }

    def release(self) -> None:
        self.touched.unpersist()
        self.changes.unpersist()


def whom_to_score(night: ScoringNight, made: dict[str, Any] | None) -> tuple[All | News, str]:
    """The users with news since user_memory was `made`; or all, and why."""
    reason = night.why_all(made)
    if not reason and made is not None:
        news = _news(night, made)
        if isinstance(news, News):
            return news, ""
        reason = news
    return All(night, _inputs(night, night.steps(night.before(night.sessions)))), reason


def _news(night: ScoringNight, made: dict[str, Any]) -> News | str:
    """What is new since user_memory was `made`, or why that cannot be told."""
    warehouse = night.warehouse
    changed = changed_parts(warehouse, SESSIONS, made["sessions"], night.sessions_version)
    if changed is None:
        return f"what changed in sessions since v{made['sessions']} cannot be told"
    last_night = end_of(date.fromisoformat(made["as_of_date"]))
    # Later events were left out then, and may be let in now, wherever they lie.
    months, buckets = ({part[place] for part in changed.parts} for place in range(2))
    in_month = F.col("started_month").isin([date.fromisoformat(month) for month in sorted(months)])
    in_parts = in_month & F.col("user_bucket").isin([int(bucket) for bucket in sorted(buckets)])

    def looked_at(sessions: DataFrame) -> DataFrame:
        # Two scans: for a condition on either, Delta would skip no file.
        late = sessions.where(F.col("ended_at") >= F.lit(last_night))
        if not changed.parts:
            return late
        return late.unionByName(sessions.where(in_parts & (F.col("ended_at") < F.lit(last_night))))

    old_sessions = looked_at(warehouse.read(SESSIONS, changed.version_before))
    new_sessions = looked_at(night.sessions)
    changes = session_changes(sessions_before(old_sessions, last_night), night.before(new_sessions))
    changes = changes.persist(StorageLevel.MEMORY_AND_DISK)
    memory = warehouse.read(USER_MEMORY)
    closes = F.col("session_open") & ~night.session_open(F.unix_seconds("last_event_time"))
    touched = touched_users(changes, memory, closes | F.lit(night.offers_differ(made)))
    touched = touched.withColumn("user_bucket", user_bucket(night.config.sessionize.num_buckets))
    touched = touched.persist(StorageLevel.MEMORY_AND_DISK)
    counts = touched.groupBy("user_bucket").agg(
        F.count("*").alias("num_users"), F.count_if("is_replayed").alias("num_replayed")
    )
    by_bucket = {row["user_bucket"]: row for row in counts.collect()}
    replayed_in = sorted(bucket for bucket, row in by_bucket.items() if row["num_replayed"])
    return News(
        night,
        _advanced(night, touched, changes, memory, replayed_in),
        touched,
        changes,
        sum(row["num_users"] for row in by_bucket.values()),
        f"user_bucket IN ({', '.join(map(str, sorted(by_bucket) or [_any_bucket(memory)]))})",
        night.offers_differ(made),
    )


def _any_bucket(memory: DataFrame) -> int:
    """One that holds users: Delta leaves out a commit that writes nothing, and the note with it."""
    row = memory.agg(F.min("user_bucket").alias("bucket")).first()
    return row["bucket"] if row is not None and row["bucket"] is not None else 0


def _advanced(
    night: ScoringNight, touched: DataFrame, changes: DataFrame, memory: DataFrame, replayed_in: list[int]
) -> DataFrame:
    """The touched users' histories since their pasts, and these; `replayed_in` are the buckets of users who have none any more."""
    advanced = touched.where(~F.col("is_replayed")).select("user_id", "gone_ids")
    new_sessions = changes.where("is_there").select(night.sessions.columns)
    new_sessions = new_sessions.join(advanced.select("user_id"), "user_id", "left_semi")
    if replayed_in:
        is_theirs = F.col("user_bucket").isin(replayed_in) if night.has_buckets_of_sessions else F.lit(True)
        whole = night.before(night.sessions.where(is_theirs))
        replayed = touched.where("is_replayed").select("user_id")
        new_sessions = new_sessions.unionByName(
            whole.join(replayed, "user_id", "left_semi").select(new_sessions.columns)
        )
    states = memory.join(advanced, "user_id", "inner")
    steps = night.steps(new_sessions).unionByName(kept_steps(states, len(night.model.config.features)))
    return _inputs(night, steps).join(states.select("user_id", *_PAST_COLUMNS), "user_id", "left")


def _inputs(night: ScoringNight, steps: DataFrame) -> DataFrame:
    """What the kernel takes of each user's steps."""
    histories = whole_histories(steps, night.model.values.fill)
    is_open = night.session_open(F.element_at("event_times", -1))
    columns = [*night.model.config.history_columns, "session_ids", "sessions_ended_at"]
    return histories.select("user_id", *columns, is_open.alias("session_open"))


def _nobody(night: ScoringNight) -> DataFrame:
    return night.warehouse.spark.createDataFrame([], "user_id string")


def _newest_lists(night: ScoringNight) -> DataFrame:
    """Of every user the `source` of his newest list before this day: user_id, source."""
    before = _predictions(night).where(F.col("as_of_date") < F.lit(night.as_of))
    return before.groupBy("user_id").agg(F.max(F.struct("as_of_date", "source"))["source"].alias("source"))


def _predictions(night: ScoringNight) -> DataFrame:
    return night.warehouse.read_or_empty(PREDICTIONS).select(PREDICTIONS.schema.names)
