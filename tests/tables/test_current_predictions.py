"""`predictions_current`: each user's newest list, whole, also while a night is written."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import date, datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.schemas import PREDICTIONS, USER_MEMORY
from llm_spark.tables.warehouse import Warehouse, sql

NUM_USERS, K, NUM_NIGHTS = 40, 5, 6


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "warehouse"))


def rows_of(spark: SparkSession, rows: list[tuple]) -> DataFrame:
    """Of (day, user, rank, item, source)."""
    full = [
        (date(2026, 1, day), user, rank, item, source, 0.5, 0.5, None, None, "m", 0, datetime(2026, 1, day), "r")
        for day, user, rank, item, source in rows
    ]
    return spark.createDataFrame(full, PREDICTIONS.schema)


def test_the_view_shows_the_newest_list_of_each_user_unless_it_says_that_there_is_none(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    rows = [
        (1, "quiet", 1, "a", "model"),
        (1, "quiet", 2, "b", "model"),
        (1, "active", 1, "a", "model"),
        (2, "active", 1, "c", None),  # as an earlier version wrote it
        (1, "unsure", 1, "a", "model"),
        (2, "unsure", 1, None, "abstained"),
        (1, "gone", 1, "a", "model"),
        (2, "gone", 1, None, "withdrawn"),
        (1, "back", 1, None, "withdrawn"),
        (2, "back", 1, "d", "model"),
        (2, "bot", 1, "p", "fallback"),
        (1, None, 1, "o", "fallback"),
        (2, None, 1, "p", "fallback"),
    ]
    warehouse.replace(PREDICTIONS, rows_of(spark, rows).coalesce(1), {})
    found = sql(warehouse, "SELECT user_id, rank, item_id FROM predictions_current").collect()
    assert sorted(map(tuple, found), key=str) == sorted(
        [
            ("quiet", 1, "a"),
            ("quiet", 2, "b"),
            ("active", 1, "c"),
            ("back", 1, "d"),
            ("bot", 1, "p"),
            (None, 1, "p"),
        ],
        key=str,
    )
    # Whoever asks gets his own list or, unknown, that of newcomers.
    asked = """
    SELECT v.user_id, coalesce(own.item_id, anybody.item_id) FROM VALUES ('active'), ('visitor'), ('unsure') AS v(user_id)
    LEFT JOIN predictions_current AS own ON own.user_id = v.user_id AND own.rank = 1
    LEFT JOIN predictions_current AS anybody ON anybody.user_id IS NULL AND anybody.rank = 1
    """
    assert {tuple(row) for row in sql(warehouse, asked).collect()} == {
        ("active", "c"),
        ("visitor", "p"),
        ("unsure", "p"),
    }


def test_while_another_model_scores_a_day_again_each_user_is_served_by_the_model_that_knows_him(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    def memory_of(model_id: str, day: int) -> DataFrame:
        told = {"user_id": "", "user_bucket": 0, "model_id": model_id, "as_of_date": date(2026, 1, day)}
        rows = [
            tuple({**told, "user_id": user}.get(name) for name in USER_MEMORY.schema.names) for user in ("anna", "ben")
        ]
        return spark.createDataFrame(rows, USER_MEMORY.schema).coalesce(1)

    def lists_of(model_id: str, *rows: tuple) -> DataFrame:
        return rows_of(spark, list(rows)).withColumn("model_id", F.lit(model_id)).coalesce(1)

    def served() -> set[tuple]:
        return {tuple(row) for row in sql(warehouse, "SELECT user_id, item_id FROM predictions_current").collect()}

    def scored_on(day: int, lists: DataFrame) -> None:
        warehouse.replace_where(PREDICTIONS, lists, f"as_of_date = DATE'2026-01-0{day}'", {})

    scored_on(1, lists_of("m1", (1, "anna", 1, "a", "model"), (1, "ben", 1, "a", "model")))
    scored_on(2, lists_of("m1", (2, "anna", 1, "b", "model"), (2, "ben", 1, "b", "model")))
    warehouse.replace(USER_MEMORY, memory_of("m1", 2), {})
    assert served() == {("anna", "b"), ("ben", "b")}
    # The same day by a model that was promoted since: its lists are there, its memories are not yet.
    scored_on(2, lists_of("m2", (2, "anna", 1, "c", "model"), (2, "ben", 1, "c", "model")))
    assert served() == {("anna", "a"), ("ben", "a")}
    # Both lie there, as score writes them; Ben is shown what is popular by the second.
    former = lists_of("m1", (2, "anna", 1, "b", "model"), (2, "ben", 1, "b", "model"))
    of_now = lists_of("m2", (2, "anna", 1, "c", "model"), (2, "ben", 1, "p", "fallback"))
    scored_on(2, former.unionByName(of_now))
    assert served() == {("anna", "b"), ("ben", "b")}
    warehouse.replace(USER_MEMORY, memory_of("m2", 2), {})
    assert served() == {("anna", "c"), ("ben", "p")}
    # Without news the fallback of a later night is his all the same.
    scored_on(3, lists_of("m2", (3, "ben", 1, "q", "fallback")))
    assert served() == {("anna", "c"), ("ben", "q")}


def test_predictions_of_an_earlier_version_are_all_shown(warehouse: Warehouse, spark: SparkSession) -> None:
    earlier = rows_of(spark, [(1, "anna", 1, "a", None)]).drop("source", "sessions_version")
    earlier.coalesce(1).write.format("delta").partitionBy("as_of_date").save(warehouse.path(PREDICTIONS))
    found = sql(warehouse, "SELECT user_id, item_id, source FROM predictions_current").collect()
    assert [tuple(row) for row in found] == [("anna", "a", None)]


def test_who_reads_while_nights_are_written_sees_each_users_list_whole(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    def night(number: int) -> DataFrame:
        lists = [(2, f"u{user}", rank, f"n{number}", "model") for user in range(NUM_USERS) for rank in range(1, K + 1)]
        # Several files a night, as several tasks write them.
        return rows_of(spark, lists).repartition(4)

    seen: list[dict[str, list[str]]] = []
    failures: list[Exception] = []
    is_done = threading.Event()

    def read_on() -> None:
        while not is_done.is_set():
            try:
                lists = defaultdict(list)
                for row in sql(warehouse, "SELECT user_id, item_id FROM predictions_current").collect():
                    lists[row["user_id"]].append(row["item_id"])
                seen.append(lists)
            except Exception as error:
                failures.append(error)
                return

    warehouse.replace_where(PREDICTIONS, night(0), "as_of_date = DATE'2026-01-02'", {"night": 0})
    reader = threading.Thread(target=read_on)
    reader.start()
    for number in range(1, NUM_NIGHTS):
        warehouse.replace_where(PREDICTIONS, night(number), "as_of_date = DATE'2026-01-02'", {"night": number})
    is_done.set()
    reader.join()
    assert failures == []
    for lists in seen:
        assert set(lists) == {f"u{user}" for user in range(NUM_USERS)}
        nights = {tuple(items) for items in lists.values()}
        assert len(nights) == 1, "all users are of one night, for a night is one commit"
        (items,) = nights
        assert len(items) == K
        assert len(set(items)) == 1
    assert len({lists["u0"][0] for lists in seen}) > 1, "some reads fell between two nights"
