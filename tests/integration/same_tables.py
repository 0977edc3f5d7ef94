"""Whether two warehouses hold the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_spark.schemas import DATA_QUALITY, LOCKS, PREDICTIONS, RUNS, TABLES, USER_MEMORY
from llm_spark.tables.warehouse import Warehouse
from tests.integration.training_victim import are_equal, weights
from tests.killing import table_rows, without_speeds

OF_THE_RUN = ("scored_at", "created_at", "changed_at", "at", "moves", "code_version")
"""Columns that tell when and by which program a row was written."""
OF_RUNS = (RUNS, DATA_QUALITY, LOCKS)
"""What was run, when and by whom: a night and its stages one by one write the same of all else."""
SETTINGS = "config"
"""Of a model, with those that have no part in it; its model_id stands for the others."""
SCORES = ["score", "probability"]
MEMORY = "memory"
SCORE_TOLERANCE = 1e-5
"""Which users share a batch, and so the order in which a kernel adds up, follows from Spark's partitions."""


def rows(warehouse: Warehouse) -> dict[str, list[str]]:
    """Of every table: its rows as text, in order, without the scores and what differs from run to run."""
    there = [t for t in TABLES.values() if t not in OF_RUNS and warehouse.exists(t)]
    found = table_rows(warehouse, *there, without=(*OF_THE_RUN, SETTINGS, *SCORES, MEMORY))
    return found | {"training_metrics": without_speeds(found["training_metrics"])}


def scores(warehouse: Warehouse) -> np.ndarray:
    predictions = warehouse.read(PREDICTIONS).orderBy("as_of_date", "user_id", "rank")
    return np.array([tuple(row) for row in predictions.select(SCORES).collect()], dtype=np.float64)


def memories(warehouse: Warehouse) -> np.ndarray:
    """Users by numbers of their vectors."""
    states = warehouse.read(USER_MEMORY).orderBy("user_id").select(MEMORY).collect()
    return np.array([np.frombuffer(row[MEMORY], dtype="<f4") for row in states])


def assert_same_tables(ours: Warehouse, theirs: Warehouse) -> None:
    assert are_equal(weights(Path(ours.root)), weights(Path(theirs.root)))
    our_rows, their_rows = rows(ours), rows(theirs)
    in_one_alone = our_rows.keys() ^ their_rows.keys()
    assert not in_one_alone, f"in one warehouse alone: {sorted(in_one_alone)}"
    for name in their_rows:
        assert our_rows[name] == their_rows[name], name
    np.testing.assert_allclose(scores(ours), scores(theirs), rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(memories(ours), memories(theirs), rtol=0, atol=SCORE_TOLERANCE)
