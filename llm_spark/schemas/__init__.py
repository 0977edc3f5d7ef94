"""Every table: its columns, types and comments. Times are UTC.

Names of columns are written out here once; transforms and pipelines refer to them by these names.
"""

from llm_spark.schemas.events import (
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    REJECTION_REASONS,
    SESSIONS,
    SESSIONS_SET_ASIDE,
    SET_ASIDE_REASONS,
)
from llm_spark.schemas.learning import EVALUATION, EVENT_TYPES, MODELS, SEQUENCES, SPLITS, TRAINING_METRICS, VOCABULARY
from llm_spark.schemas.running import DATA_QUALITY, LOCKS, RUNS
from llm_spark.schemas.serving import OUTCOMES, PREDICTIONS, USER_MEMORY
from llm_spark.schemas.table import Table

TABLES = {
    table.name: table
    for table in (
        EVENTS,
        EVENTS_REJECTED,
        INGESTED_FILES,
        SESSIONS,
        SESSIONS_SET_ASIDE,
        VOCABULARY,
        EVENT_TYPES,
        SEQUENCES,
        MODELS,
        TRAINING_METRICS,
        EVALUATION,
        PREDICTIONS,
        OUTCOMES,
        USER_MEMORY,
        DATA_QUALITY,
        RUNS,
        LOCKS,
    )
}

__all__ = [
    "DATA_QUALITY",
    "EVALUATION",
    "EVENTS",
    "EVENTS_REJECTED",
    "EVENT_TYPES",
    "INGESTED_FILES",
    "LOCKS",
    "MODELS",
    "OUTCOMES",
    "PREDICTIONS",
    "REJECTION_REASONS",
    "RUNS",
    "SEQUENCES",
    "SESSIONS",
    "SESSIONS_SET_ASIDE",
    "SET_ASIDE_REASONS",
    "SPLITS",
    "TABLES",
    "TRAINING_METRICS",
    "USER_MEMORY",
    "VOCABULARY",
    "Table",
]
