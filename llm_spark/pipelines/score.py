"""score: every user's newest history and the champion -> predictions, outcomes."""

from __future__ import annotations

import functools
from datetime import datetime, timedelta

from pyspark.sql import Column
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.as_of import as_of_sessions
from llm_spark.pipelines.evaluation_window import require_same_vocabulary
from llm_spark.pipelines.features import require_session_features
from llm_spark.pipelines.offering import fallback_items, offers_note, offers_of, users_without_history
from llm_spark.pipelines.outcome_scoring import outcomes_are_there, write_outcomes
from llm_spark.pipelines.registry.serving import champion
from llm_spark.schemas import EVENT_TYPES, PREDICTIONS, SESSIONS, VOCABULARY
from llm_spark.scoring import RECOMMEND_DDL, recommend
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import ABSTAINED, FALLBACK
from llm_spark.transforms.offers import with_fallback
from llm_spark.transforms.reasons import with_reasons_named
from llm_spark.transforms.sequences import latest_histories, tokenized_steps


def score(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Write the top k next items of every user as of a day, in place of what that day held."""
    model = champion(warehouse)
    require_session_features(warehouse, model.config.features, f"model {model.model_id}")
    with_features = bool(model.config.features)
    sessions_version = warehouse.version(SESSIONS)
    sessions = warehouse.read(SESSIONS, sessions_version)
    as_of = as_of_sessions(sessions, config.as_of).day
    # Append-only tables: what the model knows are the tokens below its own number of them.
    vocabulary = warehouse.read(VOCABULARY).where(F.col("token") < model.num_tokens)
    event_types = warehouse.read(EVENT_TYPES).where(F.col("token") < model.num_event_types)
    night_time = datetime.combine(as_of + timedelta(days=1), datetime.min.time())
    offers = offers_of(warehouse, config, model, vocabulary, event_types, night_time, account)
    origin = {
        "as_of_date": str(as_of),
        "model_id": model.model_id,
        "sessions": warehouse.data_version(SESSIONS, sessions_version),
        "offers": offers_note(config.score, offers),
        "reasons": config.score.reasons,
        "explained": config.score.explained,
        "max_tokens": config.sequences.max_tokens,
        "gap_seconds": config.sessionize.gap_seconds,
        "one_session_a_user": _one_session_a_user(config),
    }
    if warehouse.origin(PREDICTIONS) == origin and outcomes_are_there(warehouse, model, origin):
        account.nothing_to_do = f"predictions as of {as_of} by model {model.model_id} are there already"
        return
    require_same_vocabulary(warehouse, model)
    account.begin(f"score every user as of {as_of} by model {model.model_id}")
    night = F.lit(night_time)
    with progress("score"):
        clipped_sessions = model.values.clipped(sessions)
        all_steps = tokenized_steps(clipped_sessions, vocabulary, event_types, with_features)
        steps = all_steps.where(F.col("event_time") < night)
        histories = latest_histories(steps, config.sequences.max_tokens, model.values.fill)
        inputs = histories.withColumn("session_open", _session_open(config, night))
        inputs = inputs.select("user_id", *model.config.history_columns, "session_open")
        kernel = functools.partial(
            recommend,
            artifact_path=model.path,
            offers=offers,
            batch_rows=config.score.batch_rows,
            num_reasons=config.score.reasons,
            num_explained=config.score.explained,
        )
        recommended = inputs.mapInArrow(kernel, RECOMMEND_DDL)
        # Every token that the model can recommend is in the vocabulary it was trained with; who gets no recommendation has none.
        named = recommended.join(F.broadcast(vocabulary.select("token", "item_id")), "token", "left")
        offered = with_reasons_named(named, vocabulary, config.score.reasons)
        if num_days := config.score.fallback_days:
            popular = fallback_items(sessions, model, vocabulary, offers, night_time, num_days, account)
            offered = with_fallback(offered, popular, users_without_history(warehouse, sessions, night_time))
        stamped = offered.withColumns(
            {
                "as_of_date": F.lit(as_of),
                "model_id": F.lit(model.model_id),
                "sessions_version": F.lit(origin["sessions"]),
                "scored_at": F.lit(account.started_at),
                "run_id": F.lit(account.run_id),
            }
        )
        warehouse.replace_where(PREDICTIONS, stamped, f"as_of_date = DATE'{as_of}'", origin)
    written = warehouse.read(PREDICTIONS).where(F.col("as_of_date") == F.lit(as_of))
    counted = written.agg(
        F.count_distinct("user_id").alias("users"),
        F.count("item_id").alias("predictions"),
        F.count_if(F.col("source") == ABSTAINED).alias("abstained"),
        F.count_if((F.col("source") == FALLBACK) & (F.col("rank") == 1)).alias("lists_of_the_fallback"),
    ).first()
    assert counted is not None
    account.rows_in = {"sessions": sessions.count()}
    account.rows_out = counted.asDict()
    write_outcomes(warehouse, config, account, model, inputs, as_of, origin)
    account.read = {SESSIONS.name: sessions_version}
    account.wrote(warehouse, PREDICTIONS)
    account.remarks.append(f"as of {as_of}, by model {model.model_id}")


def _session_open(config: Config, night: Column) -> Column:
    """Whether the next event would still belong to the user's last session.

    Where each session is a user of its own there is no next session, so it is always open.
    """
    if _one_session_a_user(config):
        return F.lit(True)
    last_event = F.element_at("event_times", -1)
    return F.unix_seconds(night) - last_event <= config.sessionize.gap_seconds


def _one_session_a_user(config: Config) -> bool:
    return config.ingest.columns.session is not None and config.ingest.columns.session == config.ingest.columns.user
