"""evaluate: the champion on the test sequences, beside the baselines -> evaluation."""

from __future__ import annotations

import functools

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.evaluation.baselines import popularity_ranks
from llm_spark.evaluation.metrics import ranking_metrics
from llm_spark.logs import progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.certificate import require_certificate
from llm_spark.pipelines.features import require_features
from llm_spark.pipelines.gate import decide_promotion, was_evaluated
from llm_spark.pipelines.registry import MODEL, Champion, evaluated_models
from llm_spark.schemas import EVALUATION, SEQUENCES, VOCABULARY
from llm_spark.scoring import TARGET_RANKS_DDL, target_ranks
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.history_kernel import BY_TIME

_MODEL_INPUTS = (
    "sequence_id",
    "user_id",
    "tokens",
    "event_types",
    "values",
    "session_starts",
    "event_times",
    "first_target",
)


def evaluate(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Measure the challenger, or without one the champion, and let the gate decide upon the challenger.

    Also where there is nothing to measure: a run that was killed in between has left the challenger undecided.
    """
    _measure(warehouse, config, account)
    decide_promotion(warehouse, config, account)


def _measure(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Rank every test position against the whole vocabulary of the model, and by popularity, and write the metrics.

    DataError where the sequences have no certificate that passes, or the model may have seen what would test it.
    """
    models = evaluated_models(warehouse)
    model = models[MODEL]
    version = warehouse.version(SEQUENCES)
    data_version = warehouse.data_version(SEQUENCES, version)
    ids = {name: each.model_id for name, each in models.items()}
    origin = {"models": ids, "sequences": data_version, "ks": list(config.evaluate.ks)}
    if was_evaluated(warehouse, origin):
        account.nothing_to_do = f"model {model.model_id} was evaluated on sequences v{version} already"
        return
    require_certificate(warehouse)
    _check_unseen(warehouse, model, data_version)
    require_features((warehouse.origin(SEQUENCES) or {})["made_from"], model.config)
    all_sequences = warehouse.read(SEQUENCES, version)
    test = all_sequences.where(F.col("split") == "test")
    vocabulary = warehouse.read(VOCABULARY).where(F.col("token") < model.num_tokens)
    rank_kernel = functools.partial(target_ranks, artifact_path=model.path, batch_rows=config.evaluate.batch_rows)
    with progress("evaluate"):
        num_tasks = warehouse.spark.sparkContext.defaultParallelism
        columns = [*_MODEL_INPUTS, *(["features"] if model.config.features else [])]
        spread = test.select(*columns).repartition(num_tasks, "sequence_id")
        ranks = spread.mapInArrow(rank_kernel, TARGET_RANKS_DDL).persist(StorageLevel.MEMORY_AND_DISK)
        num_targets = ranks.count()
        if num_targets == 0:
            raise DataError(
                "the test split has no position to predict: move sequences.validation_until or choose another sequences.split, or bring later events"
            )
        by_popularity = popularity_ranks(ranks, all_sequences.where(F.col("split") == "train"), vocabulary)
        metrics = _named(ranks, "model", config).unionByName(_named(by_popularity, "popularity", config))
        stamped = metrics.withColumns(
            {"model_id": F.lit(model.model_id), "against": F.lit(None), "sequences_version": F.lit(version)}
        )
        warehouse.replace_where(EVALUATION, stamped, f"model_id = '{model.model_id}'", origin)
        ranks.unpersist()
    account.rows_in = {"test_sequences": test.count()}
    account.rows_out = {"predicted_positions": num_targets}
    account.read = {SEQUENCES.name: version}
    account.wrote(warehouse, EVALUATION)
    account.remarks += evaluation_lines(warehouse, model.model_id)


def _check_unseen(warehouse: Warehouse, model: Champion, data_version: int) -> None:
    """The model must not have seen what tests it.

    The certificate says so of the sequences that it was trained on. Of others it is known only where both are split by time, and the test
    begins where the model's own data ended, or later.
    """
    if data_version == model.sequences_version:
        return
    note = warehouse.origin(SEQUENCES) or {}
    if note["split"] == model.split == BY_TIME and model.validation_until is not None:
        if note["validation_until"] >= model.validation_until:
            return
        seen = f"begin at {note['validation_until']} and model {model.model_id} has seen events up to {model.validation_until}"
    else:
        theirs = f"v{model.sequences_version}, split by {model.split}"
        seen = f"are v{data_version}, split by {note['split']}, and model {model.model_id} has seen {theirs}"
    raise DataError(f"the test sequences {seen}: run `llm-spark train` on these sequences first")


def _named(ranks: DataFrame, recommender: str, config: Config) -> DataFrame:
    return ranking_metrics(ranks, config.evaluate.ks).withColumn("recommender", F.lit(recommender))


def evaluation_lines(warehouse: Warehouse, model_id: str) -> list[str]:
    """The metrics over all positions as lines of text, each with its 95 % interval."""
    of_model = warehouse.read(EVALUATION).where((F.col("model_id") == model_id) & (F.col("slice") == "all"))
    by_name: dict[str, dict[str, str]] = {}
    for row in of_model.orderBy("name").collect():
        interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        by_name.setdefault(row["name"], {})[row["recommender"]] = f"{row['value']:.3f}{interval}"
    names = sorted(by_name, key=lambda name: (name.split("@")[0], int(name.split("@")[1]) if "@" in name else 0))
    return [f"{name:<10} model {by_name[name]['model']:<24} popularity {by_name[name]['popularity']}" for name in names]
