"""Item ids made equal and missing fields, record by record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import ColumnsConfig, IngestConfig, MissingConfig, NormaliseItemConfig
from llm_spark.errors import UsageError
from llm_spark.pipelines.item_rules import check_replacements
from llm_spark.schemas.records import RAW, SOURCE_FILE, UNPARSABLE
from llm_spark.transforms.events import judge
from llm_spark.transforms.missing import normalised_item, reasons_that_are_no_fault

NOW = datetime(2026, 1, 1)
COLUMNS = ColumnsConfig(user="u", item="i", time="t", type="k", value="v", attributes={"c": "c", "d": "d"})
WHOLE = {"u": "u", "i": "i", "t": "2025-01-01", "k": "view", "v": "1.5", "c": "uk", "d": "x"}


def judged(spark: SparkSession, records: list[dict[str, Any]], **settings: Any) -> list[Row]:
    """Verdicts on `records`, each of which is given by what is other than in WHOLE."""
    rows = [tuple((WHOLE | record).values()) for record in records]
    frame = spark.createDataFrame(rows, ", ".join(f"{name} string" for name in WHOLE)).withColumns(
        {SOURCE_FILE: F.lit("file:/a"), RAW: F.lit(None).cast("string"), UNPARSABLE: F.lit(False)}
    )
    return judge(frame, IngestConfig(columns=COLUMNS, **settings), NOW).collect()


def normalised(spark: SparkSession, items: list[str], **rules: Any) -> list[str]:
    frame = spark.createDataFrame([(item,) for item in items], "item string")
    return [row[0] for row in frame.select(normalised_item(F.col("item"), NormaliseItemConfig(**rules))).collect()]


def test_stripping_takes_white_space_of_every_kind_from_both_ends_alone(spark: SparkSession) -> None:
    items = ["\t\r\n a b \v", "\u00a0x\u2003", "\ufeff8\u200b", "plain", " \t "]
    assert normalised(spark, items, strip=True) == ["a b", "x", "8", "plain", ""]


def test_ids_that_differ_only_in_case_become_equal(spark: SparkSession) -> None:
    items = ["85123A", "85123a", "STRASSE", "Straße", "ΟΔΟΣ", "οδοσ", "οδος", "Æ", "æ", "E", "É"]
    folded = normalised(spark, items, case_fold=True)
    together = [{items[place] for place, text in enumerate(folded) if text == form} for form in dict.fromkeys(folded)]
    assert together == [
        {"85123A", "85123a"},
        {"STRASSE", "Straße"},
        {"ΟΔΟΣ", "οδοσ", "οδος"},
        {"Æ", "æ"},
        {"E"},
        {"É"},
    ]
    assert folded[0] == "85123a"


def test_replacements_are_applied_in_their_order_and_before_the_case_is_folded(spark: SparkSession) -> None:
    rules = [[r"\.0$", ""], ["^SKU-(.*)$", "$1"], ["^0+", ""]]
    assert normalised(spark, ["SKU-0017.0", "sku-1"], replace=rules, case_fold=True) == ["17", "sku-1"]


def test_an_item_of_which_nothing_is_left_is_missing(spark: SparkSession) -> None:
    rules = NormaliseItemConfig(strip=True, replace=[["^n/a$", ""]])
    rows = judged(spark, [{"i": "n/a"}, {"i": "\t"}, {"i": " a\t"}], normalise_item=rules)
    assert [(row["reason"], row["item_id"]) for row in rows] == [
        ("missing_item", None),
        ("missing_item", None),
        (None, "a"),
    ]


def test_ids_that_become_equal_make_equal_events(spark: SparkSession) -> None:
    rows = judged(spark, [{"i": "85123A"}, {"i": "85123a"}], normalise_item=NormaliseItemConfig(case_fold=True))
    assert rows[0]["event_id"] == rows[1]["event_id"]


@pytest.mark.parametrize(
    ("pair", "said"), [(["(", ""], "Unclosed group"), (["(a)", "$2"], "No group 2"), (["a", "\\"], "escaped")]
)
def test_an_expression_that_java_cannot_follow_is_refused_in_one_line(
    spark: SparkSession, pair: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        check_replacements(spark, NormaliseItemConfig(replace=[pair]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pair", [[r"\.0$", ""], ["(?<n>a)|b", "${n}$1"], ["(?x) a # why", "b"]])
def test_an_expression_that_java_takes_is_not_refused(spark: SparkSession, pair: list[str]) -> None:
    check_replacements(spark, NormaliseItemConfig(replace=[pair]))


def test_constants_take_the_place_of_missing_fields_but_the_value_stays_as_logged(spark: SparkSession) -> None:
    missing = MissingConfig(user="nobody", item="nothing", type="visit", value="0", attributes={"c": "zz"})
    (row,) = judged(spark, [dict.fromkeys("uikvcd")], missing=missing)
    assert (row["reason"], row["user_id"], row["item_id"], row["event_type"]) == (None, "nobody", "nothing", "visit")
    assert (row["value"], row["attributes"]) == (None, {"c": "zz", "d": None})


@pytest.mark.parametrize("rule", ["reject", "drop"])
def test_each_missing_field_is_rejected_under_its_own_reason(spark: SparkSession, rule: str) -> None:
    missing = MissingConfig(rule, rule, rule, rule, rule, {"c": rule, "d": rule})
    records = [{}, {"u": " "}, {"i": ""}, {"t": None}, {"k": None}, {"v": "many"}, {"v": None}, {"c": ""}, {"d": None}]
    rows = judged(spark, records, missing=missing)
    assert [(row["reason"], row["detail"]) for row in rows] == [
        (None, None),
        ("missing_user", None),
        ("missing_item", None),
        ("missing_time", None),
        ("missing_type", None),
        ("missing_value", "many"),
        ("missing_value", None),
        ("missing_attribute", "c"),
        ("missing_attribute", "d"),
    ]
    assert all(row["raw"] for row in rows[1:])


def test_a_time_that_cannot_be_read_is_a_fault_even_where_missing_ones_are_dropped(spark: SparkSession) -> None:
    rows = judged(spark, [{"t": "soon"}], missing=MissingConfig(time="drop"))
    assert [row["reason"] for row in rows] == ["bad_time"]


def test_only_what_was_asked_to_be_dropped_or_filtered_is_no_fault() -> None:
    assert reasons_that_are_no_fault(MissingConfig()) == {"filtered"}
    asked = MissingConfig(user="drop", item="reject", value="drop", attributes={"c": "drop", "d": "keep"})
    assert reasons_that_are_no_fault(asked) == {"filtered", "missing_user", "missing_value", "missing_attribute"}
