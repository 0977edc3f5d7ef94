"""What the model foretells of every user beside the next item -> outcomes: whom to address in a campaign."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.config.outcomes import AMOUNT
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.registry.serving import Champion
from llm_spark.schemas import OUTCOMES, VOCABULARY
from llm_spark.scoring import FORETELL_DDL, foretell
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.deciles import in_order, with_deciles
from llm_spark.transforms.reasons import with_reasons_named


def outcomes_are_there(warehouse: Warehouse, model: Champion, origin: Mapping[str, Any]) -> bool:
    """Whether the table holds what this model foretells from this origin; also where it foretells nothing."""
    return not model.config.outcomes or warehouse.origin(OUTCOMES) == origin


def write_outcomes(
    warehouse: Warehouse,
    config: Config,
    account: Account,
    model: Champion,
    inputs: DataFrame,
    as_of: date,
    origin: Mapping[str, Any],
) -> None:
    """Every outcome of every user as of the end of a day, in place of what that day held; nothing where the model foretells none.

    `inputs` are the histories as they are scored, one row a user; `origin` says what they and the model are, with `sessions` the data version
    of that table.
    """
    if not model.config.outcomes:
        return
    with progress("score: outcomes"):
        kernel = functools.partial(
            foretell,
            artifact_path=model.path,
            batch_rows=config.score.batch_rows,
            num_reasons=config.score.reasons,
            model_id=model.model_id,
        )
        night = datetime.combine(as_of + timedelta(days=1), datetime.min.time())
        asked = inputs.withColumn("asked_at", F.unix_seconds(F.lit(night)))
        # Of a user without an event nothing can be said. Kept, for the ranges of the order are drawn in a pass of its own.
        foretold = asked.mapInArrow(kernel, FORETELL_DDL).where(F.col("value").isNotNull())
        foretold = foretold.persist(StorageLevel.MEMORY_AND_DISK)
        num_tasks = warehouse.spark.sparkContext.defaultParallelism
        placed = in_order(foretold, num_tasks).persist(StorageLevel.MEMORY_AND_DISK)
        vocabulary = warehouse.read(VOCABULARY).where(F.col("token") < model.num_tokens)
        ranked = with_reasons_named(with_deciles(placed), vocabulary, config.score.reasons)
        amounts = [outcome.name for outcome in model.config.outcomes if outcome.kind == AMOUNT]
        is_amount = F.col("outcome").isin(amounts)
        stamped = ranked.withColumns(
            {
                "probability": F.when(~is_amount, F.col("value")),
                "value": F.when(is_amount, F.col("value")),
                "as_of_date": F.lit(as_of),
                "model_id": F.lit(model.model_id),
                "sessions_version": F.lit(origin["sessions"]),
                "scored_at": F.lit(account.started_at),
                "run_id": F.lit(account.run_id),
            }
        )
        warehouse.replace_where(OUTCOMES, stamped, f"as_of_date = DATE'{as_of}'", origin)
        placed.unpersist()
        foretold.unpersist()
    account.rows_out["outcomes"] = warehouse.read(OUTCOMES).where(F.col("as_of_date") == F.lit(as_of)).count()
    account.wrote(warehouse, OUTCOMES)
