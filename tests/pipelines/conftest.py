"""What the tests of the certificate share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyspark.sql import SparkSession

from tests.pipelines.certified_tables import HISTORIES, Tables, sessions_of, tables_of


@pytest.fixture(scope="module")
def honest(spark: SparkSession) -> Callable[[str], Tables]:
    """Sequences as the stage makes them, which break no law, for each kind of split."""
    sessions = sessions_of(spark, HISTORIES).localCheckpoint()
    known: dict[str, Tables] = {}

    def of(split: str) -> Tables:
        if split not in known:
            known[split] = tables_of(spark, sessions, split)
        return known[split]

    return of
