"""The figures that four rivals published on rsc15-100k, from their saved lists through the code that measures ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from llm_spark.evaluation.estimates import Measured
from llm_spark.evaluation.items import Items
from llm_spark.evaluation.metrics import measured_rows, metric_sums
from llm_spark.evaluation.sums_kernel import MetricRules
from tests.evaluation.positions import by_name
from tests.rsc15_lists import NAME, NUM_POSITIONS, PUBLISHED, RIVALS, TEST_FILE, RivalLists, Sessions, read_sessions

SEQUENCES_DDL = "sequence_id string, session_starts array<int>, event_times array<bigint>"
RANKS_DDL = (
    "sequence_id string, user_id string, position int, session_position int, token int, rank int, top array<int>"
)


def ranks_rows(rival: RivalLists, sessions: Sessions, token_of: dict[int, int]) -> list[tuple]:
    """A rival's lists as a ranks frame: each session is a user of its own, and an item beyond the list ranks after all items."""
    rows = []
    for ((session, position), items), rank in zip(rival.lists.items(), rival.ranks(sessions).tolist(), strict=True):
        place = position + 1
        target = token_of[sessions[session][place]]
        tokens = [token_of[item] for item in items]
        rows.append((str(session), str(session), place, place, target, rank or len(token_of), tokens))
    return rows


def test_the_rivals_lists_give_their_published_figures(spark: SparkSession, shared_data: Path) -> None:
    folder = shared_data / NAME
    if not folder.is_dir():
        pytest.skip(f"the published cut '{NAME}' is not at ../shared/data")
    sessions = read_sessions(folder / TEST_FILE)
    rivals = {rival: RivalLists.of(rival, folder) for rival in RIVALS}
    named = {item for lists in rivals.values() for items in lists.lists.values() for item in items}
    items = sorted(named | {item for session in sessions.values() for item in session})
    token_of = {item: token for token, item in enumerate(items, 2)}
    rules = MetricRules((20,), Items.counted(np.arange(2, 2 + len(items)), np.ones(len(items), int)), 40)
    sequences = [(str(session), [0], list(range(len(items)))) for session, items in sessions.items()]
    test = spark.createDataFrame(sequences, SEQUENCES_DDL)
    for rival, (hit_rate, mrr) in PUBLISHED.items():
        ranks = spark.createDataFrame(ranks_rows(rivals[rival], sessions, token_of), RANKS_DDL)
        found = by_name(Measured.of_rows(measured_rows(metric_sums(ranks, test, rules)), rules).estimates())
        assert found["recall@20"].num_examples == NUM_POSITIONS
        # What is published as HR@20 is a mean over positions, which is called recall@20 here.
        assert (round(found["recall@20"].value, 3), round(found["mrr@20"].value, 3)) == (hit_rate, mrr), rival
        assert found["hit_rate@20"].num_examples == 99
