"""Delta writes that can be repeated, and snapshots that stay."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from llm_spark.errors import UserError
from llm_spark.reader import Snapshot
from llm_spark.schemas import PREDICTIONS, RUNS, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.maintenance import files_of_version
from llm_spark.tables.warehouse import TableState, Warehouse, sql


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "ware house é"))


def items(spark: SparkSession, *rows: tuple[int, str]) -> DataFrame:
    return spark.createDataFrame([(token, item, 1, datetime(2025, 1, 1)) for token, item in rows], VOCABULARY.schema)


def test_inserting_again_changes_nothing(warehouse: Warehouse, spark: SparkSession) -> None:
    for _ in range(2):
        warehouse.insert_new(VOCABULARY, items(spark, (2, "a"), (3, "b")), "item_id")
    warehouse.insert_new(VOCABULARY, items(spark, (9, "a"), (4, "c")), "item_id")
    found = {row["item_id"]: row["token"] for row in warehouse.read(VOCABULARY).collect()}
    assert found == {"a": 2, "b": 3, "c": 4}


def test_an_upsert_replaces_the_rows_of_its_keys_only(warehouse: Warehouse, spark: SparkSession) -> None:
    warehouse.upsert(VOCABULARY, items(spark, (2, "a"), (3, "b")), "item_id")
    warehouse.upsert(VOCABULARY, items(spark, (7, "a")), "item_id")
    assert {row["item_id"]: row["token"] for row in warehouse.read(VOCABULARY).collect()} == {"a": 7, "b": 3}


def test_an_append_repeated_under_its_id_lands_once(warehouse: Warehouse, spark: SparkSession) -> None:
    row = spark.createDataFrame([("r", "s", datetime(2025, 1, 1), 1.0, "done", "{}", None, None, None)], RUNS.schema)
    for write_id in ("x", "x", "y"):
        warehouse.append(RUNS, row, write_id)
    assert warehouse.read(RUNS).count() == 2


def predictions(spark: SparkSession, day: int, item: str, user: str = "u") -> DataFrame:
    row = (date(2025, 1, day), user, 1, item, "model", 0.5, 0.5, None, None, "m", 0, datetime(2025, 1, 1), "r")
    return spark.createDataFrame([row], PREDICTIONS.schema)


def test_replacing_a_day_leaves_the_other_days_and_the_view_shows_the_newest(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    for day, item in ((1, "a"), (2, "b"), (2, "c")):
        warehouse.replace_where(
            PREDICTIONS, predictions(spark, day, item), f"as_of_date = DATE'2025-01-0{day}'", {"day": day}
        )
    warehouse.replace_where(
        PREDICTIONS, predictions(spark, 1, "d", "v"), "as_of_date = DATE'2025-01-01' AND user_id = 'v'", {}
    )
    stored = sql(warehouse, "SELECT user_id, as_of_date, item_id FROM predictions ORDER BY ALL").collect()
    assert [(row[0], row[1].day, row[2]) for row in stored] == [("u", 1, "a"), ("u", 2, "c"), ("v", 1, "d")]
    current = sql(warehouse, "SELECT user_id, item_id FROM predictions_current ORDER BY ALL").collect()
    assert [tuple(row) for row in current] == [("u", "c"), ("v", "d")]


def test_a_table_of_an_earlier_version_gets_the_columns_it_lacks_and_keeps_its_rows(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    new = predictions(spark, 2, "b")
    earlier = predictions(spark, 1, "a").drop("reasons", "memory_weight")
    earlier.write.format("delta").partitionBy("as_of_date").save(warehouse.path(PREDICTIONS))
    warehouse.replace_where(PREDICTIONS, new, "as_of_date = DATE'2025-01-02'", {})
    stored = warehouse.read(PREDICTIONS)
    assert set(stored.columns) == set(PREDICTIONS.schema.names)
    rows = stored.orderBy("as_of_date").select("item_id", "reasons").collect()
    assert [tuple(row) for row in rows] == [("a", None), ("b", None)]


def test_a_pinned_version_and_its_files_outlive_later_writes(warehouse: Warehouse, spark: SparkSession) -> None:
    def rows(token: int) -> DataFrame:
        made = [
            (f"s{split}", "u", split, [token], [2], [None], [0], [1], 1, datetime(2025, 1, 1), *[None] * 8)
            for split in ("train", "test")
        ]
        return spark.createDataFrame(made, SEQUENCES.schema)

    warehouse.replace(SEQUENCES, rows(2), {"from": 1})
    version = warehouse.version(SEQUENCES)
    pinned = Snapshot.of_delta(warehouse.path(SEQUENCES), version, {"split": "train"})
    assert len(pinned.files) == 1
    warehouse.replace(SEQUENCES, rows(3), {"from": 2})
    assert Snapshot.of_delta(warehouse.path(SEQUENCES), version, {"split": "train"}) == pinned
    assert Path(pinned.files[0]).is_file()
    newest = Snapshot.of_delta(warehouse.path(SEQUENCES), warehouse.version(SEQUENCES), {"split": "train"})
    assert newest.files != pinned.files
    assert {row["tokens"][0] for row in warehouse.read(SEQUENCES, version).collect()} == {2}
    assert warehouse.origin(SEQUENCES) == {"from": 2}


def test_a_session_set_to_dynamic_overwriting_does_not_leave_old_partitions(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    def rows(split: str) -> DataFrame:
        made = [("s", "u", split, [2], [2], [None], [0], [1], 1, datetime(2025, 1, 1), *[None] * 8)]
        return spark.createDataFrame(made, SEQUENCES.schema)

    spark.conf.set("spark.sql.sources.partitionOverwriteMode", "dynamic")
    try:
        warehouse.replace(SEQUENCES, rows("train"), {})
        warehouse.replace(SEQUENCES, rows("test"), {})
    finally:
        spark.conf.unset("spark.sql.sources.partitionOverwriteMode")
    assert [row["split"] for row in warehouse.read(SEQUENCES).collect()] == ["test"]


def test_undoing_a_replacement_brings_the_former_rows_back_and_forgets_the_origin(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    warehouse.replace(VOCABULARY, items(spark, (2, "a")), {"from": 1})
    warehouse.replace(VOCABULARY, items(spark, (2, "b")), {"from": 2})
    warehouse.undo(VOCABULARY)
    assert [row["item_id"] for row in warehouse.read(VOCABULARY).collect()] == ["a"]
    assert warehouse.origin(VOCABULARY) is None


def test_the_states_tell_of_each_table_its_rows_files_and_the_versions_whose_files_are_all_there(
    warehouse: Warehouse, spark: SparkSession
) -> None:
    for item in ("a", "b"):
        warehouse.replace(VOCABULARY, items(spark, (2, item)).coalesce(1), {})
    warehouse.insert_new(VOCABULARY, items(spark, (3, "c")).coalesce(1), "item_id")
    for day, item in ((3, "a"), (1, "b")):
        warehouse.append(PREDICTIONS, predictions(spark, day, item).coalesce(1), item)
    first = files_of_version(spark, warehouse.path(VOCABULARY), 1)
    files = {path.name: path for path in Path(warehouse.path(VOCABULARY)).glob("*.parquet")}
    for name in first:
        files.pop(name).unlink()
    vocabulary, of_predictions = warehouse.states()
    num_bytes = sum(path.stat().st_size for path in files.values())
    assert vocabulary == TableState("vocabulary", 3, 2, None, 2, num_bytes, (0, 2, 3))
    num_bytes = sum(path.stat().st_size for path in Path(warehouse.path(PREDICTIONS)).rglob("*.parquet"))
    assert of_predictions == TableState("predictions", 2, 2, datetime(2025, 1, 3), 2, num_bytes, (0, 1, 2))


def test_a_missing_table_names_the_stage_that_writes_it(warehouse: Warehouse) -> None:
    with pytest.raises(UserError, match=r"'sessions' is not in the warehouse .* run `llm-spark sessionize` first"):
        warehouse.read(SESSIONS)


def test_tables_and_columns_carry_comments_and_the_oldest_protocol(warehouse: Warehouse, spark: SparkSession) -> None:
    warehouse.insert_new(VOCABULARY, items(spark, (2, "a")), "item_id")
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{warehouse.path(VOCABULARY)}`").first()
    assert detail is not None
    assert (detail["minReaderVersion"], detail["minWriterVersion"]) == (1, 2)
    assert detail["description"] == VOCABULARY.comment
    comments = {field.name: field.metadata.get("comment") for field in warehouse.read(VOCABULARY).schema.fields}
    assert comments == {field.name: field.metadata["comment"] for field in VOCABULARY.schema.fields}


def test_a_query_that_is_wrong_is_refused_in_one_line(warehouse: Warehouse, spark: SparkSession) -> None:
    with pytest.raises(UserError, match="no table is in the warehouse"):
        sql(warehouse, "SELECT 1")
    warehouse.insert_new(VOCABULARY, items(spark, (2, "a")), "item_id")
    for query in ("SELECT * FROM nothing", "SELEC", "SELECT nothing FROM vocabulary"):
        with pytest.raises(UserError, match="Tables here: vocabulary") as refused:
            sql(warehouse, query)
        assert "\n" not in str(refused.value)
