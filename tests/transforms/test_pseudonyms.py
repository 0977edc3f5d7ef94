"""Keyed hashes in the place of user ids, and what else would tell them."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.config import ColumnsConfig, IngestConfig
from llm_spark.transforms.events import HiddenUsers, judge
from llm_spark.transforms.pseudonyms import Pseudonyms, derived_from

KEY = b"0123456789abcdef0123456789abcdef"
COLUMNS = ColumnsConfig(user="u", item="i", time="t", session="s", attributes={"copy": "u", "note": "n"})


def expected(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()[:32]


def test_a_pseudonym_is_the_head_of_the_hmac_and_no_plan_shows_the_key(spark: SparkSession) -> None:
    frame = spark.createDataFrame([("Žofie",), (None,), ("Žofie",)], "u string")
    made = frame.select(Pseudonyms(KEY).of(F.col("u")).alias("p"))
    assert [row["p"] for row in made.collect()] == [expected("Žofie"), None, expected("Žofie")]
    shown = made._jdf.queryExecution().toString() + repr(Pseudonyms(KEY))
    assert not any(text in shown for text in (KEY.decode(), KEY.hex(), str(KEY)))


def judged(spark: SparkSession, **fields: str | None) -> dict[str, object]:
    given = {"u": "Žofie.7", "i": "a", "t": "2025-01-01", "s": "s", "n": "n", "_source_file": "file:/logs/a"} | fields
    frame = spark.createDataFrame([tuple(given.values())], ", ".join(f"{name} string" for name in given))
    records = frame.withColumns({"_raw": F.lit(None).cast("string"), "_unparsable": F.lit(False)})
    hidden = HiddenUsers(Pseudonyms(KEY), frozenset(["copy"]))
    row = judge(records, IngestConfig(columns=COLUMNS, filters=["i <> 'bad'"]), datetime(2026, 1, 1), hidden).first()
    assert row is not None
    return row.asDict()


def test_session_keys_and_what_is_made_of_the_user_column_are_hashed_whole(spark: SparkSession) -> None:
    found = judged(spark, s="Žofie.7-2025")
    assert found["user_id"] == expected("Žofie.7")
    assert found["session_key"] == expected("Žofie.7-2025")
    assert found["attributes"] == {"copy": expected("Žofie.7"), "note": "n"}


@pytest.mark.parametrize(
    ("field", "text", "kept"),
    [
        ("n", "from xžofie.7x", f"from x{expected('Žofie.7')}x"),
        ("n", "Žofie 7", "Žofie 7"),
        ("i", "wall/Žofie.7/3", f"wall/{expected('Žofie.7')}/3"),
        ("i", "aŽofie.7", "aŽofie.7"),
    ],
)
def test_an_id_inside_other_text_is_replaced(spark: SparkSession, field: str, text: str, kept: str) -> None:
    found = judged(spark, **{field: text})
    attributes = found["attributes"]
    assert isinstance(attributes, dict)
    assert (attributes["note"] if field == "n" else found["item_id"]) == kept


def test_a_short_id_is_not_taken_for_every_number_that_equals_it(spark: SparkSession) -> None:
    found = judged(spark, u="12", i="12", n="12 pieces", _source_file="file:/logs/2025/12/a")
    assert (found["item_id"], found["attributes"], found["file_tells"]) == (
        "12",
        {"copy": expected("12"), "note": "12 pieces"},
        False,
    )


@pytest.mark.parametrize("name", ["file:/logs/user=%C5%BDofie.7/a.csv", "file:/logs/Žofie.7.csv"])
def test_a_file_named_after_its_user_is_told(spark: SparkSession, name: str) -> None:
    assert judged(spark, _source_file=name)["file_tells"]


def test_a_rejected_record_keeps_its_length_and_keyed_hash_and_the_shape_of_the_offending_value(
    spark: SparkSession,
) -> None:
    found = judged(spark, t="Žofie.7")
    assert (found["reason"], found["detail"]) == ("bad_time", "aaaaa.9")
    raw = '{"u":"Žofie.7","i":"a","t":"Žofie.7","s":"s","n":"n"}'
    assert found["raw"] == f"withheld: {len(raw)} characters, HMAC {expected(raw)}"
    assert judged(spark, i="bad")["detail"] == "i <> 'bad'"


def test_an_expression_that_sees_the_users_column_is_known_by_its_path() -> None:
    assert derived_from([("user", "id")], [("User",)])
    assert derived_from([("user",)], [("item",), ("user", "name")])
    assert not derived_from([("user", "id")], [("user", "age"), ("id",)])
