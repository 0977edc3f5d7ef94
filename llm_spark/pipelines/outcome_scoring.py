"""What the model foretells of every user beside the next item -> outcomes: whom to address in a campaign."""

from __future__ import annotations

import functools

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config.outcomes import AMOUNT
from llm_spark.logs import progress
from llm_spark.model.artifact import foretells_as_now
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.scoring_night import ScoringNight
from llm_spark.schemas import OUTCOMES
from llm_spark.scoring import FORETELL_DDL, foretell
from llm_spark.transforms.deciles import in_order, with_deciles
from llm_spark.transforms.reasons import with_reasons_named


def outcomes_are_there(night: ScoringNight) -> bool:
    """Whether the table holds what the model foretells of this night; also where it foretells nothing."""
    return not night.model.config.outcomes or night.warehouse.origin(OUTCOMES) == night.origin


def write_outcomes(night: ScoringNight, states: DataFrame, account: Account) -> None:
    """Every outcome of every user as of the end of the day, in place of what that day held; nothing where the model foretells none.

    `states`: what the model keeps of all users, those without news included, for time that passes in silence tells, too.
    """
    warehouse, model, as_of = night.warehouse, night.model, night.as_of
    if not model.config.outcomes:
        return
    if not foretells_as_now(model.path):
        account.remarks.append(
            f"model {model.model_id} learnt its outcomes under an earlier version of this program, of fewer users, and its amounts are too low on "
            "average: run `llm-spark sequences` and `llm-spark train`"
        )
    rules = night.config.score
    with progress("score: outcomes"):
        kernel = functools.partial(
            foretell,
            artifact_path=model.path,
            batch_rows=rules.batch_rows,
            num_reasons=rules.reasons,
            model_id=model.model_id,
        )
        of_the_past = ("memory", "past", "earlier_tokens", "earlier_event_types", "model_id")
        inputs = states.select("user_id", *model.config.history_columns, *of_the_past)
        asked = inputs.withColumn("asked_at", F.unix_seconds(F.lit(night.instant)))
        # Of a user without an event nothing can be said. Kept, for the ranges of the order are drawn in a pass of its own.
        foretold = asked.mapInArrow(kernel, FORETELL_DDL).where(F.col("value").isNotNull())
        foretold = foretold.persist(StorageLevel.MEMORY_AND_DISK)
        num_tasks = warehouse.spark.sparkContext.defaultParallelism
        placed = in_order(foretold, num_tasks).persist(StorageLevel.MEMORY_AND_DISK)
        ranked = with_reasons_named(with_deciles(placed), night.vocabulary, rules.reasons)
        amounts = [outcome.name for outcome in model.config.outcomes if outcome.kind == AMOUNT]
        is_amount = F.col("outcome").isin(amounts)
        stamped = ranked.withColumns(
            {
                "probability": F.when(~is_amount, F.col("value")),
                "value": F.when(is_amount, F.col("value")),
                "as_of_date": F.lit(as_of),
                "model_id": F.lit(model.model_id),
                "sessions_version": F.lit(night.origin["sessions"]),
                "scored_at": F.lit(account.started_at),
                "run_id": F.lit(account.run_id),
            }
        )
        warehouse.replace_where(OUTCOMES, stamped, f"as_of_date = DATE'{as_of}'", night.origin)
        placed.unpersist()
        foretold.unpersist()
    account.rows_out["outcomes"] = warehouse.read(OUTCOMES).where(F.col("as_of_date") == F.lit(as_of)).count()
    account.wrote(warehouse, OUTCOMES)
