"""Tenths of the users, against a sort in plain Python."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pyspark.sql import SparkSession

from llm_spark.transforms.deciles import in_order, with_deciles

DDL = "user_id string, outcome string, value float"


@pytest.mark.parametrize("num_ranges", [1, 7])
def test_deciles_are_those_of_a_sort_of_all_users_of_an_outcome(spark: SparkSession, num_ranges: int) -> None:
    drawn = random.Random(3)
    # Of one outcome most users tie, of another all do, of a third there are fewer than ten.
    rows = [(f"u{user:03}", "buys", drawn.choice([0.5, 0.5, 0.5, 0.25, drawn.random()])) for user in range(203)]
    rows += [(f"u{user:03}", "spends", 0.0) for user in range(100)]
    rows += [(user, "leaves", value) for user, value in (("x", 0.25), ("y", 0.75), ("z", 0.75))]
    drawn.shuffle(rows)
    placed = in_order(spark.createDataFrame(rows, DDL).repartition(3), num_ranges).persist()
    found = {(row["user_id"], row["outcome"]): row["decile"] for row in with_deciles(placed).collect()}
    placed.unpersist()

    stored = {(user, outcome): row for user, outcome, row in rows}
    assert len(found) == len(stored) == 306
    for outcome in ("buys", "spends", "leaves"):
        # As the column holds them: values are float32.
        users = sorted((-float32(value), user) for (user, name), value in stored.items() if name == outcome)
        for place, (_, user) in enumerate(users):
            assert found[user, outcome] == place * 10 // len(users) + 1
    sizes = Counter(decile for (_, outcome), decile in found.items() if outcome == "buys")
    assert set(sizes) == set(range(1, 11))
    assert max(sizes.values()) - min(sizes.values()) == 1
    assert [found[user, "leaves"] for user in ("y", "z", "x")] == [1, 4, 7], "equal ones by user_id"


def float32(value: float) -> float:
    import struct

    return struct.unpack("f", struct.pack("f", value))[0]
