from __future__ import annotations

from pyspark.sql import SparkSession

from llm_spark.transforms.reasons import with_reasons_named

DDL = "user_id string, token int, item_id string, reasons array<struct<token: int, weight: float>>"


def test_reasons_keep_their_order_and_get_their_items_names(spark: SparkSession) -> None:
    vocabulary = spark.createDataFrame([(2, "two"), (3, "three"), (4, "four")], "token int, item_id string")
    rows = [
        ("a", 2, "two", [(4, 0.5), (3, 0.25)]),
        ("b", 3, "three", [(2, 1.0)]),
        ("c", 4, "four", []),
        ("d", 2, "two", None),
    ]
    named = with_reasons_named(spark.createDataFrame(rows, DDL), vocabulary, 2)
    assert named.columns == ["user_id", "token", "item_id", "reasons"]
    assert [tuple(row) for row in named.orderBy("user_id").collect()] == [
        ("a", 2, "two", [("four", 0.5), ("three", 0.25)]),
        ("b", 3, "three", [("two", 1.0)]),
        ("c", 4, "four", []),
        ("d", 2, "two", None),
    ]


def test_where_no_reasons_are_asked_for_none_are_named(spark: SparkSession) -> None:
    vocabulary = spark.createDataFrame([(2, "two")], "token int, item_id string")
    named = with_reasons_named(spark.createDataFrame([("a", 2, "two", None)], DDL), vocabulary, 0)
    assert [tuple(row) for row in named.collect()] == [("a", 2, "two", None)]
    assert named.schema["reasons"].dataType.simpleString() == "array<struct<item_id:string,weight:float>>"
