"""The category of each item, from an attribute of its events."""

from __future__ import annotations

from pyspark.sql import DataFrame

from llm_spark.config import Config
from llm_spark.errors import UsageError
from llm_spark.evaluation.metrics import item_categories


def categories_by(events: DataFrame, config: Config, attribute: str, setting: str) -> DataFrame:
    """(item_id, category) of these events. UsageError, naming the `setting`, where events keep no such attribute."""
    kept = config.ingest.columns.attributes
    if attribute not in kept:
        known = ", ".join(kept) or "none"
        raise UsageError(f"{setting} is '{attribute}', which is none of ingest.columns.attributes ({known})")
    return item_categories(events, attribute)
