"""Logs change: lines completed later, columns that come and go, types that differ, files that are empty, gone, broken or renamed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.errors import Refusal, UsageError, UserError
from llm_spark.pipelines import ingest_batch, ingest_mapping
from llm_spark.pipelines.pseudonym_key import KEY_VARIABLE
from llm_spark.schemas import DATA_QUALITY, EVENTS, EVENTS_REJECTED, INGESTED_FILES
from llm_spark.tables import raw
from llm_spark.tables.warehouse import Warehouse
from tests.integration.ingesting import COLUMNS, Loaded, ingest, ledger
from tests.killing import table_rows

TABLES = (EVENTS, EVENTS_REJECTED, INGESTED_FILES)
DAY = "2025-01-01T00:00:00Z"


@pytest.fixture
def load(loaded: Loaded, logs: Path) -> Loaded:
    def with_logs(form: str, *overrides: str) -> Config:
        return loaded(f"ingest.paths=[{logs}]", f"ingest.format={form}", *COLUMNS, *overrides)

    return with_logs


def items(warehouse: Warehouse) -> list[str]:
    return sorted(row["item_id"] for row in warehouse.read(EVENTS).select("item_id").collect())


def measured(warehouse: Warehouse, name: str) -> dict[str, str]:
    rows = warehouse.read(DATA_QUALITY).where(f"name = '{name}'").collect()
    return {row["subject"].rsplit("/", 1)[-1]: row["severity"] for row in rows}


def test_an_event_of_half_a_line_gives_way_to_the_whole_one_and_a_file_written_anew_takes_nothing_back(
    spark: SparkSession, load: Loaded, logs: Path, tmp_path: Path
) -> None:
    price, time = logs / "price.csv", logs / "time.csv"
    price.write_text(f"user,item,time,price\nu1,a,{DAY},5\nu2,b,{DAY},1")
    time.write_text("user,item,time\nu3,c,2025-01-01T00:00")
    # What is half a record in the first file is a whole one here.
    (logs / "true.csv").write_text(f"user,item,time,price\nu2,b,{DAY},1\n")
    (logs / "today.csv").write_text("user,item,time\n" + "".join(f"u4,d{n},{DAY}\n" for n in range(3)))
    config = load("csv", "ingest.columns.value=price")
    warehouse, _ = ingest(spark, config)
    assert items(warehouse) == ["a", "b", "c", "d0", "d1", "d2"]
    with price.open("a") as file:
        file.write("9.90\nu5,e,2025-01-02T00:00:00Z,2\n")
    with time.open("a") as file:
        file.write(":30\n")
    _, account = ingest(spark, config)
    clean, _ = ingest(spark, load("csv", "ingest.columns.value=price", f"warehouse={tmp_path / 'clean'}"))
    assert table_rows(warehouse, *TABLES) == table_rows(clean, *TABLES)
    values = {(row["item_id"], row["value"]) for row in warehouse.read(EVENTS).where("item_id = 'b'").collect()}
    assert values == {("b", 19.9), ("b", 1.0)}
    assert any(remark.startswith("2 events were of lines that were not whole") for remark in account.remarks)
    (logs / "today.csv").write_text("user,item,time\n" + "".join(f"u4,d{n},{DAY}\n" for n in range(2, 40)))
    _, account = ingest(spark, config)
    assert items(warehouse) == sorted(["a", "b", "b", "c", "e", *(f"d{n}" for n in range(40))])
    assert any("lacks 2 of the 3 events that it brought: they stay" in remark for remark in account.remarks)
    assert measured(warehouse, "events_kept") == {"today.csv": "info"}


def write(file: Path, columns: Sequence[str], *rows: Sequence[str]) -> None:
    if file.suffix == ".csv":
        lines = [",".join(row) for row in (columns, *rows)]
    else:
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_mapping_that_copes_with_columns_that_come_and_go_stops_no_night(
    spark: SparkSession, load: Loaded, logs: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(ingest_mapping, "_NUM_LINES_SAMPLED", 2)
    columns = ['ingest.columns.item="coalesce(item, sku)"', "ingest.columns.type=kind"]
    rules = ["ingest.filters=[\"NOT coalesce(agent, '') LIKE '%bot%'\"]", "ingest.columns.attributes={n: size n}"]
    config = load(form, *columns, *rules)
    old = ("user", "item", "time", "kind", "agent", "size n")
    write(logs / f"1.{form}", old, ("u", "a", DAY, "view", "bot", "1"), ("u", "b", DAY, "view", "x", "2"))
    warehouse, account = ingest(spark, config)
    assert account.remarks[0].startswith("column 'sku': no file has it, so that it is null in every record (ingest.col")
    # Neither item nor sku in those that come first.
    logins = [("u", DAY, "")] * 3
    write(logs / f"2.{form}", ("user", "time", "note"), *logins)
    write(logs / f"3.{form}", ("user", "sku", "time"), ("u", "c", DAY))
    _, account = ingest(spark, config)
    kinds = {(row["item_id"], row["event_type"], row["attributes"]["n"]) for row in warehouse.read(EVENTS).collect()}
    assert kinds == {("b", "view", "2"), ("c", "event", None)}
    assert account.rejected == {"missing_item": 3}
    lacking = {"item": "warning", "kind": "warning", "agent": "warning", "size n": "warning", "sku": "warning"}
    assert measured(warehouse, "missing_column") == lacking
    write(logs / f"4.{form}", ("user", "thing", "time"), ("u", "d", DAY))
    with pytest.raises(UsageError, match=r"ingest.columns.item: 'item' is not among the (columns|fields) found: "):
        ingest(spark, config)
    with pytest.raises(UsageError, match=r"ingest.filters: 'status' is not among the (columns|fields) found: "):
        ingest(spark, load(form, "ingest.columns.item=thing", "ingest.filters=[\"status = '200'\"]"))


def test_what_settings_for_a_new_warehouse_must_not_name(spark: SparkSession, load: Loaded, logs: Path) -> None:
    write(logs / "a.csv", ("user", "item", "time", "price"), ("u", "a", DAY, "1"))
    for setting, told in (
        ("ingest.columns.type=kind", "ingest.columns.type: 'kind' is not among the columns found: user, item, time"),
        ('ingest.columns.session="uuid()"', r"has another value each time \(uuid\), so that a record"),
        ('ingest.columns.attributes={a: "coalesce(price, date_add(current_date(), 1))"}', r"each time \(current_date"),
        ('ingest.columns.time="coalesce(time, now())"', r"ingest.columns.time: .* each time \(now\)"),
    ):
        with pytest.raises(UsageError, match=told):
            ingest(spark, load("csv", setting))


def test_a_parquet_record_is_the_same_event_whatever_is_read_with_it_and_nanoseconds_are_read(
    spark: SparkSession, load: Loaded, logs: Path, tmp_path: Path
) -> None:
    at, seen = datetime(2025, 7, 1, 12), datetime(2025, 7, 1, 12, 30)
    micros = pa.timestamp("us", "UTC")
    tables = {
        "typed": {"user": ["u"], "item": ["a"], "time": pa.array([at], micros), "seen": pa.array([seen], micros)},
        "epoch": {"user": [7], "item": ["b"], "time": [1751371200000], "seen": ["2025-07-01T12:30:00"]},
    }
    tables["epoch"] |= {"more": [1], "price": [0.5]}
    for name, table in tables.items():
        pq.write_table(pa.table(table), logs / f"{name}.parquet")
    frame = pd.DataFrame({"user": ["u", "u"], "item": ["c", "d"], "price": [1.5, 2.5]})
    frame["time"] = pd.to_datetime(["2025-07-01T12:00:00.000001999", "2025-07-01T21:00:00.000000000"])
    frame["seen"] = frame["time"].dt.tz_localize("UTC")
    frame.to_parquet(logs / "pandas.parquet")
    attributes = "ingest.columns.attributes={seen: seen, more: more}"
    settings = (attributes, "ingest.time_format=epoch_ms", "ingest.time_zone=Asia/Tokyo", "ingest.columns.value=price")
    together, account = ingest(spark, load("parquet", *settings, f"warehouse={tmp_path / 'together'}"))
    assert account.rows_out == {"events": 4, "duplicates": 0, "rejected": 0}
    found = {row["item_id"]: row for row in together.read(EVENTS).collect()}
    assert {item: row["event_time"] for item, row in found.items()} == {
        "a": at,
        "b": at,
        "c": datetime(2025, 7, 1, 3, 0, 0, 1),
        "d": at,
    }
    assert found["a"]["attributes"] == {"seen": "2025-07-01 12:30:00", "more": None}
    assert found["c"]["attributes"]["seen"] == "2025-07-01 12:00:00.000001"
    one_by_one = str(tmp_path / "one by one")
    for name in ("epoch", "typed", "pandas"):
        path = f"ingest.paths=['{logs}/{name}.parquet']"
        alone, _ = ingest(spark, load("parquet", *settings, path, f"warehouse={one_by_one}"))
    assert table_rows(alone, *TABLES) == table_rows(together, *TABLES)


def test_columns_that_begin_with_an_underscore_are_the_datas(spark: SparkSession, load: Loaded, logs: Path) -> None:
    (logs / "splunk.csv").write_text(f"_id,_time,_raw,_metadata,,_source_file\nu,{DAY},a,b,c,d\n")
    columns = ["ingest.columns.user=_id", "ingest.columns.item=_raw", "ingest.columns.time=_time"]
    attributes = "ingest.columns.attributes={m: _metadata, c: upper(_c4), s: _source_file}"
    warehouse, _ = ingest(spark, load("csv", *columns, attributes))
    (row,) = warehouse.read(EVENTS).collect()
    assert (row["user_id"], row["item_id"], row["attributes"]) == ("u", "a", {"m": "b", "c": "C", "s": "d"})
    assert row["source_file"].endswith("splunk.csv")


def test_a_day_without_records_stops_no_night(
    spark: SparkSession, load: Loaded, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("csv")
    with pytest.raises(UserError, match=f"nothing matches '{logs}'"):
        ingest(spark, config)
    (logs / "1.csv").write_text(f"user,item,time\nu,a,{DAY}\n")
    warehouse, _ = ingest(spark, config)
    (logs / "2.csv").write_text("")
    _, account = ingest(spark, config)
    assert account.rows_in == {"files": 1, "records": 0}
    (logs / "3.csv").write_text("user,item,time\n")
    ingest(spark, config)
    assert ledger(warehouse) == {"1.csv": (1, 1, 0, 0), "2.csv": (0, 0, 0, 0), "3.csv": (0, 0, 0, 0)}
    assert ingest(spark, config)[1].nothing_to_do == "every file is ingested already"
    (logs / "4.csv").write_text(f"user,item,time\nu,b,{DAY}\n")
    with monkeypatch.context() as written:
        written.setattr(raw, "changed_files", lambda _, files: list(files))
        assert "all 1 files changed while they were read" in ingest(spark, config)[1].nothing_to_do
    shutil.rmtree(logs)
    told = f"every file is ingested already, and nothing matches '{logs}' any more"
    assert ingest(spark, config)[1].nothing_to_do == told
    with pytest.raises(UserError, match=f"nothing matches '{logs}s'"):
        ingest(spark, load("csv", f"ingest.paths=[{logs}s]"))


def test_files_that_cannot_be_read_are_all_named_and_the_others_ingested(
    spark: SparkSession, load: Loaded, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(22):
        (logs / f"{number:02}.parquet").write_bytes(b"PAR1 broken PAR1")
    pq.write_table(pa.table({"user": ["u"], "item": ["a"], "time": [DAY]}), logs / "whole.parquet")
    config = load("parquet")
    with pytest.raises(Refusal, match="22 of 23 files cannot be read"):
        ingest(spark, config)
    warehouse = Warehouse(spark, config.warehouse)
    assert items(warehouse) == ["a"]
    assert len(measured(warehouse, "unreadable_file")) == 22
    # Cut in their middle, they are found one by one.
    monkeypatch.setattr(ingest_batch, "_MAX_FAILED_READINGS", 1)
    zipped = gzip.compress(f'{{"user": "u", "item": "i", "time": "{DAY}"}}\n'.encode() * 9_000 + os.urandom(9_000))
    for name in "abc":
        (logs / f"{name}.jsonl.gz").write_bytes(zipped[: len(zipped) // 2])
    named = (
        r"2 files cannot be read, and whether .*: 'file:.*\.jsonl\.gz' .*; 'file:.*\.jsonl\.gz' .*: repair or remove"
    )
    with pytest.raises(Refusal, match=named):
        ingest(spark, load("jsonl", f"ingest.paths=['{logs}/*.gz']"))
    assert len(measured(warehouse, "unreadable_file")) == 24


def test_of_files_of_one_size_and_time_each_takes_over_one_that_is_gone(
    spark: SparkSession, load: Loaded, logs: Path
) -> None:
    for name, item in (("x", "a"), ("y", "b")):
        line = f'{{"user": "u", "item": "{item}", "time": "{DAY}"}}\n'
        (logs / f"{name}.jsonl").write_text(line * 2 + line[:20] + "\n")
        os.utime(logs / f"{name}.jsonl", (1_700_000_000, 1_700_000_000))
    config = load("jsonl")
    warehouse, _ = ingest(spark, config)
    version = warehouse.version(INGESTED_FILES)
    for name in ("z1", "z2"):
        shutil.copy2(logs / "x.jsonl", logs / f"{name}.jsonl")
    (logs / "x.jsonl").unlink()
    ingest(spark, config)
    expected = {"y.jsonl": (3, 1, 1, 1), "z1.jsonl": (3, 1, 1, 1), "z2.jsonl": (3, 0, 1, 2)}
    assert ledger(warehouse) == expected
    assert warehouse.version(INGESTED_FILES) == version + 1, "in one commit: a run killed in between leaves no old name"
    names = [row["source_file"].rsplit("/", 1)[1] for row in warehouse.read(EVENTS_REJECTED).collect()]
    assert sorted(names) == sorted(expected)


def test_a_field_that_only_a_late_line_has_is_read_and_not_told_to_be_missing(
    spark: SparkSession, load: Loaded, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_mapping, "_NUM_LINES_SAMPLED", 2)
    config = load("jsonl", "ingest.columns.value=price", "ingest.columns.attributes={c: città}")
    columns = ("user", "item", "time")
    write(logs / "1.jsonl", columns, ("u", "a", DAY), ("u", "b", DAY), ("u", "price", DAY))
    write(logs / "2.jsonl", (*columns, "price", "città"), ("u", "c", DAY, "2.5", "x"))
    warehouse, account = ingest(spark, config)
    assert {(row["item_id"], row["value"]) for row in warehouse.read(EVENTS).where("value > 0").collect()} == {
        ("c", 2.5)
    }
    assert account.remarks == []
    assert measured(warehouse, "missing_column") == {}
    write(logs / "3.jsonl", columns, *[("u", f"d{n}", DAY) for n in range(3)])
    _, account = ingest(spark, config)
    assert measured(warehouse, "missing_column") == {"price": "warning", "città": "warning"}


def test_a_file_that_changed_is_not_read_under_settings_that_make_other_events_of_its_records(
    spark: SparkSession, load: Loaded, logs: Path
) -> None:
    write(logs / "1.csv", ("user", "item", "time", "kind", "price"), ("u", "a", DAY, "view", "1"))
    warehouse, _ = ingest(spark, load("csv"))
    others = (
        "ingest.columns.type=kind",
        "ingest.columns.item=upper(item)",
        "ingest.columns.attributes={p: price}",
        "ingest.time_zone=Asia/Tokyo",
        "ingest.normalise_item.case_fold=true",
        "ingest.missing.type=click",
    )
    for setting in others:
        assert ingest(spark, load("csv", setting))[1].nothing_to_do, "it has not changed"
    with (logs / "1.csv").open("a") as file:
        file.write(f"u,b,{DAY},view,1\n")
    write(logs / "2.csv", ("user", "item", "time"), ("u", "c", DAY))
    for setting in others:
        with pytest.raises(UsageError, match=r"1\.csv' was read under other settings of ingest"):
            ingest(spark, load("csv", setting))
    assert items(warehouse) == ["a"]
    # These make the same events.
    ingest(spark, load("csv", "ingest.missing.user=drop", "ingest.filters=[\"item <> 'c'\"]"))
    assert items(warehouse) == ["a", "b"]
    # A ledger that an earlier version of this program wrote knows nothing of settings.
    rows = warehouse.read(INGESTED_FILES).drop("settings")
    files = rows.localCheckpoint()
    shutil.rmtree(warehouse.path(INGESTED_FILES))
    files.write.format("delta").save(warehouse.path(INGESTED_FILES))
    with (logs / "1.csv").open("a") as file:
        file.write(f"u,d,{DAY},view,1\n")
    write(logs / "3.csv", ("user", "item", "time"), ("u", "e", DAY))
    (logs / "2.csv").rename(logs / "4.csv")
    os.utime(logs / "4.csv", None)
    ingest(spark, load("csv"))
    assert items(warehouse) == ["a", "b", "c", "d", "e"]
    settings = {row["source_file"][-5:]: row["settings"] for row in warehouse.read(INGESTED_FILES).collect()}
    assert settings["1.csv"] == settings["3.csv"] is not None


def test_nor_is_one_that_would_be_read_again_for_another_that_was_not_whole(
    spark: SparkSession, load: Loaded, logs: Path
) -> None:
    by_kind, header = "ingest.columns.type=kind", "user,item,time,kind"
    (logs / "torn.csv").write_text(f"{header}\nu,a,{DAY},view")
    warehouse, _ = ingest(spark, load("csv", by_kind))
    (logs / "whole.csv").write_text(f"{header}\n" + f"u,b,{DAY},view\n" * 2)
    ingest(spark, load("csv"))
    with (logs / "torn.csv").open("a") as file:
        file.write("ed\n")
    with pytest.raises(UsageError, match=r"whole\.csv' was read under other settings of ingest"):
        ingest(spark, load("csv", by_kind))
    assert items(warehouse) == ["a", "b"]


def test_a_log_that_was_rotated_and_compressed_is_its_old_self(spark: SparkSession, load: Loaded, logs: Path) -> None:
    text = f'{{"user": "u", "item": "a", "time": "{DAY}"}}\n{{"user": \n'
    (logs / "app.jsonl").write_text(text)
    os.utime(logs / "app.jsonl", (1_700_000_000, 1_700_000_000))
    config = load("jsonl")
    warehouse, _ = ingest(spark, config)
    (logs / "app.jsonl").unlink()
    (logs / "app.1.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    os.utime(logs / "app.1.jsonl.gz", (1_700_000_000, 1_700_000_000))
    ingest(spark, config)
    assert ledger(warehouse) == {"app.1.jsonl.gz": (2, 1, 1, 0)}
    names = [row["source_file"].rsplit("/", 1)[1] for row in warehouse.read(EVENTS_REJECTED).collect()]
    assert names == ["app.1.jsonl.gz"]
    with pytest.raises(UserError, match=r"nothing matches '.*\.jsnl'"):
        ingest(spark, load("jsonl", f"ingest.paths=['{logs}/*.jsnl']"))


def test_an_expression_that_takes_all_columns_is_refused(spark: SparkSession, load: Loaded, logs: Path) -> None:
    write(logs / "1.csv", ("user", "item", "time"), ("u", "a", DAY))
    with pytest.raises(UsageError, match=r"ingest.columns.attributes.all: 'to_json\(struct\(\*\)\)' takes whatever"):
        ingest(spark, load("csv", "ingest.columns.attributes={all: 'to_json(struct(*))'}"))


def test_a_file_without_a_header_shows_no_id_where_ids_are_hidden(
    spark: SparkSession, load: Loaded, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "correct-horse-battery-staple-0123456789")
    (logs / "a.csv").write_text(f"alice@example.com,a,{DAY}\nbob@example.com,b,{DAY}\n")
    (logs / "b.jsonl").write_text(f'{{"alice@example.com": {{"item": "a", "time": "{DAY}"}}}}\n')
    told = {}
    for form in ("csv", "jsonl"):
        with pytest.raises(UsageError) as refused:
            ingest(spark, load(form, "ingest.pseudonymise=true", f"ingest.paths=['{logs}/*.{form}']"))
        told[form] = str(refused.value)
    key = "ingest.columns.user: 'user' is not among the"
    assert told["csv"] == f"{key} 3 columns found: does a file lack its header line?"
    assert told["jsonl"] == f"{key} 1 fields found: check the fields' names"
    with pytest.raises(UsageError, match=r"alice@example\.com, a, 2025"):
        ingest(spark, load("csv", f"ingest.paths=['{logs}/*.csv']"))
