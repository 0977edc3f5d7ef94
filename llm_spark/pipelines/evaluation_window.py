"""The test positions that all recommenders of one evaluation are ranked on, and how each is measured there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.evaluation.estimates import Measured
from llm_spark.evaluation.metrics import collected_items, item_popularity, measured_rows, metric_sums
from llm_spark.evaluation.sums_kernel import MetricRules
from llm_spark.model.artifact import read_tables
from llm_spark.pipelines.features import require_features
from llm_spark.pipelines.item_attributes import categories_by
from llm_spark.pipelines.registry.serving import Champion
from llm_spark.pipelines.registry.token_tables import made_anew, sequences_id, token_table_ids
from llm_spark.schemas import EVENTS, SEQUENCES, VOCABULARY
from llm_spark.scoring import TARGET_RANKS_DDL, target_ranks
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms.history_kernel import BY_TIME


@dataclass(frozen=True)
class EvaluationWindow:
    """The test rows of one version of the sequences, with what recommenders learn from and are measured by."""

    version: int
    """Of the table sequences."""
    test: DataFrame
    """Those that predict anything."""
    training: DataFrame
    vocabulary: DataFrame
    """The items that may be recommended: token, item_id."""
    rules: MetricRules
    num_sequences: int
    num_positions: int
    num_users: int
    num_tasks: int
    batch_rows: int
    asked: DataFrame
    """All rows of the test split, those that are there for their outcomes alone included."""

    def model_ranks(self, model: Champion) -> DataFrame:
        """The ranks frame of a model, in TARGET_RANKS_DDL, lazy."""
        columns = ["sequence_id", "user_id", *model.config.history_columns, "first_target"]
        kernel = functools.partial(
            target_ranks, artifact_path=model.path, batch_rows=self.batch_rows, list_length=self.rules.list_length
        )
        return (
            self.test.select(*columns).repartition(self.num_tasks, "sequence_id").mapInArrow(kernel, TARGET_RANKS_DDL)
        )

    def measured(self, ranks: DataFrame) -> Measured:
        """Every metric's sums over these ranks, in one pass; DataError unless they are of exactly this window's positions."""
        measured = Measured.of_rows(measured_rows(metric_sums(ranks, self.test, self.rules)), self.rules)
        if measured.num_positions != self.num_positions:
            raise DataError(f"it ranks {measured.num_positions:,} positions of the {self.num_positions:,} to predict")
        return measured

    def measured_model(self, model: Champion) -> Measured:
        """How this model does here; two of them can be compared, paired, by `Measured.less`."""
        return self.measured(self.model_ranks(model))


def open_window(warehouse: Warehouse, config: Config, models: Sequence[Champion]) -> EvaluationWindow:
    """The newest sequences' test rows, for these models, which must be testable, and the baselines.

    DataError where there is no position to predict; UsageError where items have no such attribute as diversity is asked by.
    """
    version = warehouse.version(SEQUENCES)
    all_sequences = warehouse.read(SEQUENCES, version)
    asked, training = (all_sequences.where(F.col("split") == split) for split in ("test", "train"))
    test = asked.where(F.col("first_target") < F.size("tokens"))
    counted = test.agg(
        F.count("*").alias("num_sequences"),
        F.coalesce(F.sum(F.size("tokens") - F.col("first_target")), F.lit(0)).alias("num_positions"),
        F.count_distinct("user_id").alias("num_users"),
    ).first()
    assert counted is not None
    if counted["num_positions"] == 0:
        raise DataError(
            "the test split has no position to predict: move sequences.validation_until or choose another sequences.split, or bring later events"
        )
    num_tokens = max(model.num_tokens for model in models)
    vocabulary = warehouse.read(VOCABULARY).where(F.col("token") < num_tokens)
    popularity = item_popularity(vocabulary, training, _categories(warehouse, config))
    rules = MetricRules(
        tuple(sorted(set(config.evaluate.ks))), collected_items(popularity), config.evaluate.num_replicates
    )
    return EvaluationWindow(
        version,
        test,
        training,
        vocabulary,
        rules,
        counted["num_sequences"],
        counted["num_positions"],
        counted["num_users"],
        warehouse.spark.sparkContext.defaultParallelism,
        config.evaluate.batch_rows,
        asked,
    )


def require_testable(warehouse: Warehouse, model: Champion) -> None:
    """DataError where the model may have seen what would test it, takes other features than the sequences hold, or knows other items by the
    same tokens."""
    require_same_vocabulary(warehouse, model)
    if seen := seen_of_the_test(warehouse, model):
        raise DataError(f"{seen}: run `llm-spark train` on these sequences first")
    require_features((warehouse.origin(SEQUENCES) or {})["made_from"], model.config)


def _categories(warehouse: Warehouse, config: Config) -> DataFrame | None:
    """The items' categories, where diversity is asked for."""
    attribute = config.evaluate.diversity_attribute
    if attribute is None:
        return None
    return categories_by(warehouse.read(EVENTS), config, attribute, "evaluate.diversity_attribute")


def seen_of_the_test(warehouse: Warehouse, model: Champion) -> str:
    """How the model may have seen what would test it; empty where it has not.

    The certificate says so of the sequences that it was trained on. Of others it is known only where both are split by time, and the test
    begins where the model's own data ended, or later.
    """
    data_version, table_id = warehouse.data_version(SEQUENCES), sequences_id(warehouse)
    is_same_table = model.sequences_id in (None, table_id)
    if is_same_table and data_version == model.sequences_version:
        return ""
    note = warehouse.origin(SEQUENCES) or {}
    if note.get("split") == model.split == BY_TIME and model.validation_until is not None:
        if note["validation_until"] >= model.validation_until:
            return ""
        seen = f"begin at {note['validation_until']} and model {model.model_id} has seen events up to {model.validation_until}"
    else:
        ours, theirs = f"v{data_version}", f"v{model.sequences_version}"
        if not is_same_table:
            ours, theirs = f"{ours} of table {table_id[:8]}", f"{theirs} of table {str(model.sequences_id)[:8]}"
        seen = f"are {ours}, split by {note.get('split')}, and model {model.model_id} has seen {theirs}, split by {model.split}"
    return f"the test sequences {seen}"


def require_same_vocabulary(warehouse: Warehouse, model: Champion) -> None:
    """DataError where its tokens mean other items or event types than the tables of now say."""
    if other := other_vocabulary(warehouse, model):
        raise DataError(f"{other}: run `llm-spark train`")


def other_vocabulary(warehouse: Warehouse, model: Champion) -> str:
    """In what the vocabulary or the event types that it was trained on are others than those of now; empty where they are not.

    A vocabulary only ever grows, so an older one is a part of a newer one; of a table that was made anew the tokens mean something else.
    """
    tables, ids = read_tables(model.path), token_table_ids(warehouse)
    trained_on = tables.get("data_versions", tables["table_versions"])[VOCABULARY.name]
    id_then, id_now = tables.get("vocabulary_id"), ids["vocabulary_id"]
    now = warehouse.data_version(VOCABULARY)
    largest = warehouse.read(VOCABULARY).agg(F.max("token")).first()
    num_tokens = int(largest[0]) + 1 if largest is not None and largest[0] is not None else 0

    def named(table_id: str | None, version: int, size: int) -> str:
        return (
            f"v{version}{f' of table {table_id[:8]}' if table_id else ''} ({max(0, size - FIRST_ITEM_TOKEN):,} items)"
        )

    if id_then not in (None, id_now) or trained_on > now or model.num_tokens > num_tokens:
        return (
            f"model {model.model_id} was trained on another vocabulary, {named(id_then, trained_on, model.num_tokens)}, than the "
            f"sequences are written in, {named(id_now, now, num_tokens)}"
        )
    if table := made_anew(tables, ids):
        return f"model {model.model_id} was trained on another table {table} than the one that the sequences are written in"
    return ""
