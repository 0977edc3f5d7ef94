"""Keyed hashes in the place of user ids, and what else would tell them."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.config import ColumnsConfig, IngestConfig
from llm_spark.schemas.records import RAW, SOURCE_FILE, UNPARSABLE
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


def judged(spark: SparkSession, *also: str, rule: str = "i <> 'bad'", **fields: str | None) -> dict[str, object]:
    given = {"u": "Žofie.7", "i": "a", "t": "2025-01-01", "s": "s", "n": "n", "file": "file:/logs/a"} | fields
    frame = spark.createDataFrame([tuple(given.values())], ", ".join(f"{name} string" for name in given))
    records = frame.withColumnRenamed("file", SOURCE_FILE)
    records = records.withColumns({RAW: F.lit(None).cast("string"), UNPARSABLE: F.lit(False)})
    hidden = HiddenUsers(Pseudonyms(KEY, also), frozenset(["copy"]))
    row = judge(records, IngestConfig(columns=COLUMNS, filters=["true", rule]), datetime(2026, 1, 1), hidden).first()
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


@pytest.mark.parametrize(
    ("user", "text", "kept"),
    [
        ("Žofie.7", "/?to=%C5%BDofie.7&a=1%202", "/?to={}&a=1 2"),
        ("Žofie.7", "/?to=%c5%bdofie%2e7", "/?to={}"),
        ("Žofie.7", "/?next=%2F%3Fto%3D%25C5%25BDofie.7", "/?next=/?to={}"),
        ("Žofie.7", "100% of %C5%BDofie.7 and Žofie.7", "100% of {} and {}"),
        ("Jan Novák", "q=jan+nov%C3%A1k+1", "q={}+1"),
        ("Jan+9@x.cz", "q=Jan+9%40x.cz", "q={}"),
        ("Jan+9@x.cz", "q=Jan%2B9%40x.cz", "q={}"),
        ("ann%40x.cz", "mailto:ann@x.cz", "mailto:{}"),
        ("Žofie.7", "a%20b+%zz", "a%20b+%zz"),
        ("a%40b", "a@b", "a@b"),
    ],
)
def test_an_id_that_is_url_encoded_is_replaced_and_the_text_decoded(
    spark: SparkSession, user: str, text: str, kept: str
) -> None:
    attributes = judged(spark, u=user, n=text)["attributes"]
    assert isinstance(attributes, dict)
    assert attributes["note"] == kept.replace("{}", expected(user))


def test_a_column_that_holds_ids_of_users_is_hashed_whole_as_the_users_own_is(spark: SparkSession) -> None:
    found = judged(spark, "item", "attributes.note", i="bob@example.com", n="eve")
    assert (found["item_id"], found["session_key"]) == (expected("bob@example.com"), expected("s"))
    assert found["attributes"] == {"copy": expected("Žofie.7"), "note": expected("eve")}


def test_a_short_id_is_not_taken_for_every_number_that_equals_it(spark: SparkSession) -> None:
    found = judged(spark, u="12", i="12", n="12 pieces", file="file:/logs/2025/12/a")
    assert (found["item_id"], found["attributes"], found["telling_name"]) == (
        "12",
        {"copy": expected("12"), "note": "12 pieces"},
        None,
    )


@pytest.mark.parametrize(
    ("user", "name", "shown"),
    [
        ("Žofie.7", "file:/logs/user=%C5%BDofie.7/a.csv", "file:/logs/user=…/a.csv"),
        ("Žofie.7", "file:/logs/Žofie.7.csv", "file:/logs/….csv"),
        ("a:b@x.cz", "file:/logs/user=a%253Ab%2540x.cz/a.csv", "file:/logs/user=…/a.csv"),
        ("4711", "file:/logs/user=4711/a.csv", "file:/logs/user=…/a.csv"),
        ("4", "file:/logs/day=4/Customer=4", "file:/logs/day=4/Customer=…"),
        ("é 1", "file:/logs/user=%C3%A9%201/a.csv", "file:/logs/user=…/a.csv"),
    ],
)
def test_a_file_named_after_its_user_is_told_without_the_id(
    spark: SparkSession, user: str, name: str, shown: str
) -> None:
    assert judged(spark, u=user, file=name)["telling_name"] == shown


@pytest.mark.parametrize("name", ["month=4/day=4/a", "user=44/a", "user=4x/a", "4/a", "event_date=4/user_bucket=4/a"])
def test_a_folder_that_numbers_a_day_or_a_part_does_not_tell_the_user_of_that_number(
    spark: SparkSession, name: str
) -> None:
    assert judged(spark, u="4", file=f"file:/logs/{name}")["telling_name"] is None


def test_a_rejected_record_keeps_its_length_and_keyed_hash_and_the_shape_of_the_offending_value(
    spark: SparkSession,
) -> None:
    found = judged(spark, t="Žofie.7")
    assert (found["reason"], found["detail"]) == ("bad_time", "aaaaa.9")
    raw = '{"u":"Žofie.7","i":"a","t":"Žofie.7","s":"s","n":"n"}'
    assert found["raw"] == f"withheld: {len(raw)} characters, HMAC {expected(raw)}"


def test_a_filter_that_names_a_user_is_told_by_its_place(spark: SparkSession) -> None:
    found = judged(spark, rule="u <> 'Žofie.7'")
    assert (found["reason"], found["detail"]) == ("filtered", "ingest.filters[1]")


def test_an_expression_that_sees_the_users_column_is_known_by_its_path() -> None:
    assert derived_from([("user", "id")], [("User",)])
    assert derived_from([("user",)], [("item",), ("user", "name")])
    assert not derived_from([("user", "id")], [("user", "age"), ("id",)])
