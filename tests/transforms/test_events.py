"""Records into events: each verdict, each time format, and identities that tell apart what differs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import ColumnsConfig, IngestConfig
from llm_spark.schemas.records import RAW, SOURCE_FILE, UNPARSABLE
from llm_spark.transforms.events import judge, laid_out, numbered, rejected_records
from llm_spark.transforms.records import parse_access_log, parse_json_lines

NOW = datetime(2026, 1, 1)
COLUMNS = ColumnsConfig(user="u", item="i", time="t")


def records(
    spark: SparkSession, rows: list[tuple[Any, ...]], columns: str = "u string, i string, t string"
) -> DataFrame:
    return spark.createDataFrame(rows, columns).withColumns(
        {SOURCE_FILE: F.lit("file:/a"), RAW: F.lit(None).cast("string"), UNPARSABLE: F.lit(False)}
    )


def verdicts(frame: DataFrame, config: IngestConfig) -> list[Any]:
    return [row["reason"] for row in judge(frame, config, NOW).collect()]


def times(spark: SparkSession, texts: list[str], **settings: str) -> list[datetime | None]:
    frame = records(spark, [("u", "i", text) for text in texts])
    return [row["event_time"] for row in judge(frame, IngestConfig(columns=COLUMNS, **settings), NOW).collect()]


def test_each_fault_of_a_record_has_its_own_reason(spark: SparkSession) -> None:
    rows = [
        ("u", "i", "2025-01-01 00:00:00"),
        (None, "i", "2025-01-01 00:00:00"),
        ("  ", "i", "2025-01-01 00:00:00"),
        ("u", "", "2025-01-01 00:00:00"),
        ("u", "i", None),
        ("u", "i", "yesterday"),
        ("u", "i", "1970-01-01 00:00:00"),
        ("u", "i", "2026-01-03 00:00:00"),
        ("u", "bad", "2025-01-01 00:00:00"),
    ]
    config = IngestConfig(columns=COLUMNS, filters=["i <> 'bad'"])
    assert verdicts(records(spark, rows), config) == [
        None,
        "missing_user",
        "missing_user",
        "missing_item",
        "missing_time",
        "bad_time",
        "time_out_of_range",
        "future_time",
        "filtered",
    ]


def test_a_filter_that_cannot_be_decided_does_not_let_the_record_through(spark: SparkSession) -> None:
    frame = records(spark, [("u", None, "2025-01-01 00:00:00")])
    assert verdicts(frame, IngestConfig(columns=COLUMNS, filters=["i <> 'bad'"])) == ["filtered"]


def test_float_epoch_seconds_keep_their_milliseconds(spark: SparkSession) -> None:
    assert times(spark, ["1396437466.94", "1.396437466E9", "x"], time_format="epoch_s") == [
        datetime(2014, 4, 2, 11, 17, 46, 940_000),
        datetime(2014, 4, 2, 11, 17, 46),
        None,
    ]


@pytest.mark.parametrize(("unit", "text"), [("epoch_ms", "1396437466940"), ("epoch_us", "1396437466940000")])
def test_epochs_of_finer_units_are_read(spark: SparkSession, unit: str, text: str) -> None:
    assert times(spark, [text], time_format=unit) == [datetime(2014, 4, 2, 11, 17, 46, 940_000)]


def test_the_unit_of_an_epoch_is_told_by_its_magnitude(spark: SparkSession) -> None:
    texts = [
        "1396437466.94",
        "1396437466940",
        "1396437466940000",
        "1396437466940000000",
        "99999999999",
        "100000000000",
        "x",
    ]
    assert times(spark, texts, time_format="epoch_auto") == [
        *[datetime(2014, 4, 2, 11, 17, 46, 940_000)] * 4,
        datetime(5138, 11, 16, 9, 46, 39),
        datetime(1973, 3, 3, 9, 46, 40),
        None,
    ]


def test_a_local_time_that_the_clock_shows_twice_is_the_first_and_a_skipped_one_moves_on(spark: SparkSession) -> None:
    found = times(spark, ["2025-10-26T01:30:00", "2025-03-30T01:30:00"], time_zone="Europe/London")
    in_london = ZoneInfo("Europe/London")
    expected = [datetime(2025, 10, 26, 1, 30), datetime(2025, 3, 30, 1, 30)]
    assert found == [time.replace(tzinfo=in_london, fold=0).astimezone(UTC).replace(tzinfo=None) for time in expected]
    assert found == [datetime(2025, 10, 26, 0, 30), datetime(2025, 3, 30, 1, 30)]


def test_a_log_of_the_sixties_is_accepted_where_the_settings_reach_back_so_far(spark: SparkSession) -> None:
    frame = records(spark, [("u", "i", "1970-01-01T00:00:00Z"), ("u", "i", "2200-01-01T00:00:00Z")])
    config = IngestConfig(columns=COLUMNS, earliest_time="1960-01-01")
    assert verdicts(frame, config) == [None, "future_time"]


@pytest.mark.parametrize("earliest", ["20250101", "2025-W01-3", "2025-01-01T02:00+02:00"])
def test_the_earliest_time_bounds_however_it_is_written(spark: SparkSession, earliest: str) -> None:
    frame = records(spark, [("u", "i", "2024-12-31T23:59:59Z"), ("u", "i", "2025-01-01T00:00:00Z")])
    config = IngestConfig(columns=COLUMNS, earliest_time=earliest)
    assert verdicts(frame, config) == ["time_out_of_range", None]


def test_a_record_too_long_is_not_looked_into_and_its_beginning_is_kept(spark: SparkSession) -> None:
    text, short = (json.dumps({"u": "u", "i": "x" * length, "t": "2025-01-01"}) for length in (3_000, 1_000))
    parsed = parse_json_lines(lines(spark, [text, short]), [("u",), ("i",), ("t",)], 2_000)
    found = judge(parsed, IngestConfig(columns=COLUMNS, max_record_chars=2_000), NOW).collect()
    assert [row["reason"] for row in found] == ["too_long", None]
    assert found[0]["raw"] == text[:1_000]
    assert found[0]["detail"].startswith("3,0")


def test_a_local_time_is_taken_in_its_zone_with_daylight_saving(spark: SparkSession) -> None:
    found = times(
        spark,
        ["2011-07-01 12:00:00", "2011-12-01 12:00:00"],
        time_format="yyyy-MM-dd HH:mm:ss",
        time_zone="Europe/London",
    )
    assert found == [datetime(2011, 7, 1, 11), datetime(2011, 12, 1, 12)]


def test_a_time_that_carries_its_zone_is_not_shifted_again(spark: SparkSession) -> None:
    assert times(spark, ["2025-01-01T12:00:00+02:00", "2025-01-01T12:00:00"], time_zone="Asia/Tokyo") == [
        datetime(2025, 1, 1, 10),
        datetime(2025, 1, 1, 3),
    ]
    hour_only = ["2025-07-01 10:00:00+00", "2025-07-01 10:00:00 Europe/London"]
    assert times(spark, hour_only, time_zone="Asia/Tokyo") == [datetime(2025, 7, 1, 10), datetime(2025, 7, 1, 9)]
    access = times(spark, ["17/May/2015:10:05:03 +0200"], time_format="dd/MMM/yyyy:HH:mm:ss Z", time_zone="Asia/Tokyo")
    assert access == [datetime(2015, 5, 17, 8, 5, 3)]


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("EST", -5),
        (" EST", -5),
        (" CET", 2),
        (" UT", 0),
        (" PST8PDT", -7),
        (" GMT+2", 2),
        (" UTC+02:00", 2),
        (" Etc/GMT+5", -5),
        (" America/Port-au-Prince", -4),
        (" Z", 0),
        (" +02:00:00", 2),
    ],
)
def test_a_zone_of_any_kind_that_spark_reads_is_told_from_a_bare_time(
    spark: SparkSession, zone: str, hours: int
) -> None:
    found = times(spark, [f"2025-07-01T12:00:00.5{zone}", f"2025-07-01 12:00:00{zone}"], time_zone="Asia/Tokyo")
    noon = datetime(2025, 7, 1, 12) - timedelta(hours=hours)
    assert found == [noon + timedelta(seconds=0.5), noon]


def test_a_bare_time_is_local_however_much_of_it_is_written(spark: SparkSession) -> None:
    texts = ["2025-07-01", "2025-07-01 9", "2025-07-01T09:00", " 2025-07-01 9:0:0", "2025-07-01 09:00:00.000000001 "]
    midnight = datetime(2025, 6, 30, 15)
    assert times(spark, texts, time_zone="Asia/Tokyo") == [midnight, *[midnight + timedelta(hours=9)] * 4]


def test_a_time_of_day_without_a_date_is_no_time(spark: SparkSession) -> None:
    assert times(spark, ["10:15:00", "T10:15", "2025-01-01"]) == [None, None, datetime(2025, 1, 1)]


def test_a_value_that_is_no_finite_number_is_missing(spark: SparkSession) -> None:
    rows = [("u", "i", "2025-01-01", value) for value in ("1.5", "NaN", "Infinity", "many", None)]
    config = IngestConfig(columns=ColumnsConfig(user="u", item="i", time="t", value="v"))
    found = judge(records(spark, rows, "u string, i string, t string, v string"), config, NOW).collect()
    assert [row["value"] for row in found] == [1.5, None, None, None, None]
    assert len({row["event_id"] for row in found}) == 2


def test_records_that_differ_in_any_mapped_field_are_different_events(spark: SparkSession) -> None:
    rows = [
        ("u", "i", "2025-01-01 00:00:00", 1.0),
        ("u", "i", "2025-01-01 00:00:00", None),
        ("u", "i", "2025-01-01 00:00:01", 1.0),
    ]
    config = IngestConfig(columns=ColumnsConfig(user="u", item="i", time="t", value="v", attributes={"w": "v"}))
    frame = records(spark, rows + rows[:1], "u string, i string, t string, v double")
    events = numbered(laid_out(judge(frame, config, NOW), 2)).collect()
    assert len({row["event_id"] for row in events}) == 3
    assert sorted(row["occurrence"] for row in events) == [1, 1, 1, 2]


def test_duplicates_are_counted_over_all_files_in_their_order_and_within_each(spark: SparkSession) -> None:
    frame = records(spark, [("u", "i", "2025-01-01")]).drop(SOURCE_FILE)
    files = spark.createDataFrame([(f"file:/{name}",) for name in "babba"], f"{SOURCE_FILE} string")
    judged = judge(frame.crossJoin(files), IngestConfig(columns=COLUMNS), NOW)
    columns = ("source_file", "occurrence", "occurrence_in_file")
    assert sorted(tuple(row) for row in numbered(laid_out(judged, 2)).select(*columns).collect()) == [
        ("file:/a", 1, 1),
        ("file:/a", 2, 2),
        ("file:/b", 3, 1),
        ("file:/b", 4, 2),
        ("file:/b", 5, 3),
    ]


def test_equal_broken_lines_of_one_file_are_two_rejected_records(spark: SparkSession) -> None:
    frame = records(spark, [("u", "i", None), ("u", "i", None)])
    rejected = rejected_records(laid_out(judge(frame, IngestConfig(columns=COLUMNS), NOW), 2)).collect()
    assert len({row["record_id"] for row in rejected}) == 2
    assert rejected[0]["raw"] == '{"u":"u","i":"i"}'


def test_a_rejected_row_keeps_the_columns_whose_names_begin_with_an_underscore(spark: SparkSession) -> None:
    frame = records(spark, [("u", "i", None, "7")], "u string, i string, t string, _id string")
    (row,) = judge(frame, IngestConfig(columns=COLUMNS), NOW).collect()
    assert row["raw"] == '{"u":"u","i":"i","_id":"7"}'


def lines(spark: SparkSession, texts: list[str]) -> DataFrame:
    return spark.createDataFrame([("file:/a", text) for text in texts], f"{SOURCE_FILE} string, {RAW} string")


def test_json_fields_are_read_as_text_and_broken_lines_are_marked(spark: SparkSession) -> None:
    texts = [
        '{"user": {"id": 17850.0}, "n": 12345678901234567890}',
        '{"user": {"id"',
        "[]",
        '{"n": "é\\u00e9"}',
        "null",
    ]
    rows = parse_json_lines(lines(spark, texts), [("user", "id"), ("n",)]).collect()
    assert [(row["user"]["id"] if row["user"] else None, row["n"], row[UNPARSABLE]) for row in rows[:2]] == [
        ("17850.0", "12345678901234567890", False),
        (None, None, True),
    ]
    assert (rows[3]["n"], rows[3][UNPARSABLE]) == ("éé", False)
    assert rows[4][UNPARSABLE]


def test_an_access_log_line_is_split_into_its_fields(spark: SparkSession) -> None:
    good = r'1.2.3.4 - bob [17/May/2015:10:05:03 +0000] "GET /a/b.html?q=1 HTTP/1.1" 200 - "-" "Agent \"X\" (bot)"'
    row, broken = parse_access_log(lines(spark, [good, good[:60]])).collect()
    assert (row["host"], row["user"], row["identity"], row["method"], row["path"]) == (
        "1.2.3.4",
        "bob",
        None,
        "GET",
        "/a/b.html",
    )
    assert (row["status"], row["size"], row["referrer"], row["agent"]) == ("200", None, None, r"Agent \"X\" (bot)")
    assert not row[UNPARSABLE]
    assert broken[UNPARSABLE]


def test_a_very_long_request_does_not_break_the_parser(spark: SparkSession) -> None:
    line = f'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET /{"a" * 50_000} HTTP/1.1" 200 1 "-" "-"'
    (row,) = parse_access_log(lines(spark, [line])).collect()
    assert (row[UNPARSABLE], len(row["path"])) == (False, 50_001)
