"""score: the champion, and what came since the last night of each user -> predictions, outcomes, user_memory.

What the model keeps of a user (user_memory) goes on from where it stood: only users with new sessions are scored, and of these only what
is new is read. Where that cannot be, all histories are replayed from their first event; both ways give the same tables. Predictions are written
first: user_memory says what both were made from, so that a run killed in between is done again from the same state.
"""

from __future__ import annotations

import functools

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.evaluation_window import require_same_vocabulary
from llm_spark.pipelines.offering import fallback_items, users_without_history
from llm_spark.pipelines.outcome_scoring import outcomes_are_there, write_outcomes
from llm_spark.pipelines.peak_memory import PeakMemory
from llm_spark.pipelines.scoring_news import All, News, whom_to_score
from llm_spark.pipelines.scoring_night import ScoringNight
from llm_spark.schemas import PREDICTIONS, SESSIONS, USER_MEMORY
from llm_spark.scoring import ADVANCE_DDL, advance
from llm_spark.tables.warehouse import Warehouse, conformed
from llm_spark.tokens import ABSTAINED, FALLBACK, WITHDRAWN
from llm_spark.transforms.offers import with_fallback
from llm_spark.transforms.reasons import with_reasons_named
from llm_spark.transforms.sessions import user_bucket


def score(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Write the top k next items, as of a day, of every user for whom there is news since the last one."""
    night = ScoringNight.of(warehouse, config, account)
    made = warehouse.origin(USER_MEMORY)
    has_outcomes = outcomes_are_there(night)
    if night.is_made(made) and has_outcomes:
        if night.lies_beside_another():
            account.begin(f"remove the lists of a former model of {night.as_of}")
            _remove_former_lists(night, account)
            return
        account.nothing_to_do = f"predictions as of {night.as_of} by model {night.model.model_id} are there already"
        return
    require_same_vocabulary(warehouse, night.model)
    account.begin(f"score as of {night.as_of} by model {night.model.model_id}")
    with progress("score"):
        work, reason = whom_to_score(night, made)
        try:
            is_silent = isinstance(work, News) and work.num_touched == 0 and not config.score.fallback_days
            if is_silent and night.is_whole(made) and has_outcomes:
                account.nothing_to_do = f"no user has news as of {night.as_of}"
                return
            if reason:
                account.remarks.append(f"all histories were replayed: {reason}")
            _score(night, work, account)
        finally:
            work.release()


def _score(night: ScoringNight, work: All | News, account: Account) -> None:
    """Score what there is to do, write the tables in the order that a kill in between allows, and tell."""
    peak = PeakMemory(night.warehouse.spark)
    scored = _scored(night, work.histories, peak).persist(StorageLevel.DISK_ONLY)
    try:
        lists, states = (scored.where(which) for which in ("rank IS NOT NULL", "rank IS NULL"))
        # Before anything is written: a write of what these were made from lets Spark forget them, and they would be made twice.
        counts = work.counts(states)
        _write_predictions(night, work, lists, states, account)
        write_outcomes(night, work.states_of_all(states), account)
        if not night.is_earlier:
            _write_memory(night, work, states, account)
        if night.former_model is not None:
            _remove_former_lists(night, account)
        _tell(night, counts, account, peak)
    finally:
        scored.unpersist()


def _scored(night: ScoringNight, histories: DataFrame, peak: PeakMemory) -> DataFrame:
    """Rows of ADVANCE_DDL: of each history its recommendations, and its new state."""
    config, model = night.config, night.model
    kernel = functools.partial(
        advance,
        artifact_path=model.path,
        model_id=model.model_id,
        offers=night.offers,
        batch_rows=config.score.batch_rows,
        max_tokens=config.sequences.max_tokens,
        fills_from_the_past=model.values.fill.looks_back,
        num_reasons=config.score.reasons,
        num_explained=config.score.explained,
    )
    return histories.mapInArrow(peak.of(kernel), ADVANCE_DDL)


def _write_predictions(
    night: ScoringNight, work: All | News, lists: DataFrame, states: DataFrame, account: Account
) -> None:
    """The partition of the day: what stands in it of users without news, the new lists, and a word for each user who has no session any more."""
    # Every token that the model can recommend is in the vocabulary it was trained with; who gets no recommendation has none.
    named = lists.join(F.broadcast(night.vocabulary.select("token", "item_id")), "token", "left")
    offered = with_reasons_named(named, night.vocabulary, night.config.score.reasons)
    kept, gone = work.kept_predictions(states), work.without_history(states)
    if num_days := night.config.score.fallback_days:
        # Of newcomers, whose user_id is null: they get a list again.
        gone = gone.where(F.col("user_id").isNotNull())
        popular = fallback_items(
            night.sessions, night.model, night.vocabulary, night.offers, night.instant, num_days, account
        )
        without_events = users_without_history(night.warehouse, night.sessions, night.instant)
        strangers = without_events.unionByName(work.strangers())
        offered = with_fallback(offered, popular, strangers)
        kept, gone = (rows.join(strangers, "user_id", "left_anti") for rows in (kept, gone))
    withdrawn = gone.select("user_id", F.lit(1).alias("rank"), F.lit(WITHDRAWN).alias("source"))
    stamps = {
        "as_of_date": F.lit(night.as_of),
        "model_id": F.lit(night.model.model_id),
        "sessions_version": F.lit(night.origin["sessions"]),
        "scored_at": F.lit(account.started_at),
        "run_id": F.lit(account.run_id),
    }
    new_rows = offered.unionByName(withdrawn, allowMissingColumns=True).withColumns(stamps)
    new_rows = new_rows.join(work.served(), "user_id", "left_anti")
    whole_day = kept.unionByName(conformed(new_rows, PREDICTIONS))
    night.warehouse.replace_where(PREDICTIONS, whole_day, _of_day(night), night.origin_of_predictions)
    account.wrote(night.warehouse, PREDICTIONS)


def _remove_former_lists(night: ScoringNight, account: Account) -> None:
    """Once user_memory is this model's, nobody is served the lists of the same day that another model made."""
    of_day = night.warehouse.read(PREDICTIONS).where(F.col("as_of_date") == F.lit(night.as_of))
    mine = of_day.where(F.col("model_id") == F.lit(night.model.model_id))
    night.warehouse.replace_where(PREDICTIONS, mine, _of_day(night), night.origin)
    account.wrote(night.warehouse, PREDICTIONS)


def _of_day(night: ScoringNight) -> str:
    return f"as_of_date = DATE'{night.as_of}'"


def _write_memory(night: ScoringNight, work: All | News, states: DataFrame, account: Account) -> None:
    last_event = F.element_at("event_times", -1)
    new_rows = states.withColumns(
        {
            "user_bucket": user_bucket(night.config.sessionize.num_buckets),
            "model_id": F.lit(night.model.model_id),
            "position": F.coalesce("past.num_events", F.lit(0)) + F.size("tokens"),
            "last_event_time": F.timestamp_seconds(last_event),
            "last_session_id": F.element_at("session_ids", -1),
            "session_open": night.session_open(last_event),
            "as_of_date": F.lit(night.as_of),
            "run_id": F.lit(account.run_id),
        }
    )
    origin = night.origin_of_memory()
    if isinstance(work, All):
        night.warehouse.replace(USER_MEMORY, new_rows, origin)
    else:
        rows = work.kept_memory().unionByName(conformed(new_rows, USER_MEMORY))
        night.warehouse.replace_where(USER_MEMORY, rows, work.parts, origin)
    account.wrote(night.warehouse, USER_MEMORY)


def _tell(night: ScoringNight, counts: dict[str, int], account: Account, peak: PeakMemory) -> None:
    of_day = night.warehouse.read(PREDICTIONS).where(F.col("as_of_date") == F.lit(night.as_of))
    counted = of_day.agg(
        F.count_distinct("user_id").alias("users"),
        F.count("item_id").alias("predictions"),
        F.count_if(F.col("source") == ABSTAINED).alias("abstained"),
        F.count_if((F.col("source") == FALLBACK) & (F.col("rank") == 1)).alias("lists_of_the_fallback"),
        F.count_if((F.col("source") == WITHDRAWN) & (F.col("run_id") == account.run_id)).alias("users_withdrawn"),
    ).first()
    assert counted is not None
    account.read = {SESSIONS.name: night.sessions_version}
    account.rows_in = {"sessions": night.sessions.count()}
    account.rows_out |= {**counted.asDict(), **counts}
    account.remarks.append(f"as of {night.as_of}, by model {night.model.model_id}")
    if night.is_earlier:
        account.remarks.append(
            f"user_memory stays as of {night.newest}: predictions of {night.as_of} alone were written"
        )
    account.remarks.append(f"a Python worker of the scoring kernel took {peak.mib:,} MiB at most")
