"""Broken inputs: every line that a file holds is an event, a rejected record with its reason, or a duplicate. Lines are counted here, by hand."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import DATA_QUALITY, EVENTS, EVENTS_REJECTED
from llm_spark.tables import raw, raw_csv
from llm_spark.tables.warehouse import Warehouse
from tests.integration.ingesting import COLUMNS, Loaded, ingest, ledger

TIME = "2025-01-01T00:00:00Z"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs ü"
    folder.mkdir()
    return folder


def load(loaded: Loaded, logs: Path, form: str, *overrides: str) -> Config:
    return loaded(f"ingest.paths=['{logs}']", f"ingest.format={form}", *COLUMNS, *overrides)


def line(item: str, time: str = TIME, **more: object) -> bytes:
    fields = "".join(f', "{name}": "{value}"' for name, value in more.items())
    return f'{{"user": "u", "item": "{item}", "time": "{time}"{fields}}}'.encode()


def rejections(warehouse: Warehouse) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for row in warehouse.read(EVENTS_REJECTED).collect():
        found.setdefault(row["source_file"].rsplit("/", 1)[1], Counter())[row["reason"]] += 1
    return found


def test_every_line_of_broken_json_files_is_accounted_for(spark: SparkSession, loaded: Loaded, logs: Path) -> None:
    files = {
        "bom.jsonl": [b"\xef\xbb\xbf" + line("bom"), line("after")],
        "crlf.jsonl": [line("c1") + b"\r", line("c2") + b"\r"],
        "empty.jsonl": [],
        "long.jsonl": [line("x" * 5_000), line("short")],
        "nul.jsonl": [line("a\x00b"), line("a\\u0000b"), b"\x00\x00\x00", line("good")],
        "renamed columns.jsonl": [b'{"user": "u", "thing": "i"}', b'{"user": {"id": 1}, "item": ["x"], "time": 5}'],
        "twice.jsonl": [line("c1"), line("c1")],
        "utf8.jsonl": [line("caf").replace(b"caf", b"caf\xe9"), line("café")],
        "zeit.jsonl": [line("t1", "1970-01-01T00:00:00Z"), line("t2", "2200-01-01T00:00:00Z"), line("t3", "soon")],
        "odd": [b"[1, 2]", b'"text"', b"{", b"null", line("odd")],
    }
    for name, lines in files.items():
        (logs / name).write_bytes(b"".join(one + b"\n" for one in lines))
    (logs / "a folder.jsonl").mkdir()
    (logs / "a folder.jsonl" / "in.jsonl").write_bytes(line("inner") + b"\n")
    warehouse, account = ingest(spark, load(loaded, logs, "jsonl", "ingest.max_record_chars=4000"))
    found = ledger(warehouse)
    assert {name: counts[0] for name, counts in found.items()} == {
        **{name.replace(" ", "%20"): len(lines) for name, lines in files.items()},
        "in.jsonl": 1,
    }
    assert all(counts[0] == sum(counts[1:]) for counts in found.values())
    items = Counter(row["item_id"] for row in warehouse.read(EVENTS).select("item_id").collect())
    accepted = ["bom", "after", "c1", "c2", "short", "good", "café", "odd", "inner"]
    assert items == Counter(accepted)
    assert rejections(warehouse) == {
        "long.jsonl": Counter(too_long=1),
        "nul.jsonl": Counter(unparsable=3),
        "renamed%20columns.jsonl": Counter(missing_item=1, bad_time=1),
        "utf8.jsonl": Counter(unparsable=1),
        "zeit.jsonl": Counter(time_out_of_range=1, future_time=1, bad_time=1),
        "odd": Counter(unparsable=4),
    }
    assert account.rows_out == {"events": 9, "duplicates": 2, "rejected": 14}
    (long,) = warehouse.read(EVENTS_REJECTED).where("reason = 'too_long'").collect()
    assert len(long["raw"]) == 1_000
    assert long["detail"].startswith(f"{len(files['long.jsonl'][0]):,} characters")
    checks = warehouse.read(DATA_QUALITY).where("name = 'num_rejected'").collect()
    measured = {(row["subject"].rsplit("/", 1)[-1], row["detail"]): row["value"] for row in checks}
    assert measured["all files", "unparsable"] == 8
    assert measured["zeit.jsonl", "future_time"] == 1
    per_file = sum(value for (subject, _), value in measured.items() if subject != "all files")
    assert per_file == sum(value for (subject, _), value in measured.items() if subject == "all files") == 14


def test_every_line_of_broken_csv_files_is_accounted_for(spark: SparkSession, loaded: Loaded, logs: Path) -> None:
    header = b"user,item,time"
    rows = {
        "header.csv": [b"u,h1,%s", header, b"u,h2,%s", b" user , item,time"],
        "quotes.csv": [b'u,"q\n1",%s', b'u,"never closed,%s', b'u,"q, ""2""",%s'],
        "utf8.csv": [b"u,caf\xe9,%s", b"\x00u,n\x00,%s"],
        "crlf.csv": [b"u,r1,%s\r", b"u,r2\r", b"u,r3,%s,more\r"],
        "bom.csv": [b"u,b1,%s"],
    }
    for name, records in rows.items():
        body = b"".join(one.replace(b"%s", TIME.encode()) + b"\n" for one in records)
        (logs / name).write_bytes((b"\xef\xbb\xbf" if name == "bom.csv" else b"") + header + b"\n" + body)
    (logs / "header only.csv").write_bytes(header + b"\n")
    (logs / "wider.csv").write_bytes(b"time,extra,item,user\n" + TIME.encode() + b",x,w1,u\n")
    warehouse, _ = ingest(spark, load(loaded, logs, "csv"))
    # The quoted line end makes two lines of one record; all other records are lines.
    num_lines = {name: len(records) for name, records in rows.items()} | {"quotes.csv": 4}
    found = ledger(warehouse)
    assert {name: counts[0] for name, counts in found.items()} == {**num_lines, "header%20only.csv": 0, "wider.csv": 1}
    assert all(counts[0] == sum(counts[1:]) for counts in found.values())
    items = sorted(row["item_id"] for row in warehouse.read(EVENTS).select("item_id").collect())
    assert items == sorted(["h1", "h2", 'q, "2"', "n", "r1", "b1", "w1"])
    assert rejections(warehouse) == {
        "header.csv": Counter(repeated_header=2),
        "quotes.csv": Counter(unparsable=3),
        "utf8.csv": Counter(unparsable=1),
        "crlf.csv": Counter(unparsable=2),
    }


def test_a_csv_file_is_read_whatever_stands_before_its_header_or_in_one_of_its_lines(
    spark: SparkSession, loaded: Loaded, logs: Path
) -> None:
    header = b"user,item,time\n"
    files = {
        "blank lines.csv": b"\n" * 70_000 + header + b"u,b1,%s\n",
        "commas.csv": header + b"u,c1,%s\n" + b"," * 30_000 + b"\nu,c2,%s\n",
        "quoted header.csv": b'\xef\xbb\xbf"user","item","time"\nu,q1,%s\n',
        "separators.csv": "user,item,time,a\x0bb\u2028c\x85d\n".encode() + b"u,s1,%s,x\n",
        "wide.csv": header[:-1] + (b"," + b"x" * 900) * 80 + b"\nu,w1,%s" + b"," * 80 + b"\n",
        "without end.csv": b"user,item,time",
        "blank.csv": b" \n" * 100,
    }
    for name, text in files.items():
        (logs / name).write_bytes(text.replace(b"%s", TIME.encode()))
    warehouse, account = ingest(spark, load(loaded, logs, "csv"))
    items = sorted(row["item_id"] for row in warehouse.read(EVENTS).select("item_id").collect())
    assert items == ["b1", "c1", "c2", "q1", "s1", "w1"]
    assert account.rejected == {"unparsable": 1}


def test_a_csv_file_without_an_end_of_its_header_is_set_aside(
    spark: SparkSession, loaded: Loaded, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_csv, "_MAX_HEADER_BYTES", 1 << 18)
    (logs / "a.csv").write_bytes(b"\n" * (1 << 19) + b"user,item,time\n")
    (logs / "b.csv").write_text(f"user,item,time\nu,b,{TIME}\n")
    config = load(loaded, logs, "csv")
    with pytest.raises(DataError, match=r"a\.csv' \(no header line ends within its first 0 MiB\)"):
        run_stage("ingest", Warehouse(spark, config.warehouse), config)
    assert rejections(Warehouse(spark, config.warehouse)) == {"a.csv": Counter(unreadable_file=1)}


def test_a_column_of_any_name_is_told_of_a_rejected_record(spark: SparkSession, loaded: Loaded, logs: Path) -> None:
    odd = {"a`b": ["x" * 5_000, "y", "z"], "a.b": ["1", "2", "3"]}
    records = {"user": ["u", None, "w"], "item": ["i", "j", "k"], "time": [TIME] * 3}
    pq.write_table(pa.table(records | odd), logs / "a.parquet")
    warehouse, account = ingest(spark, load(loaded, logs, "parquet", "ingest.max_record_chars=2000"))
    assert account.rejected == {"missing_user": 1, "too_long": 1}
    raw_of = {row["reason"]: row["raw"] for row in warehouse.read(EVENTS_REJECTED).collect()}
    assert raw_of["missing_user"] == f'{{"item":"j","time":"{TIME}","a`b":"y","a.b":"2"}}'
    assert raw_of["too_long"] == (f'{{"user":"u","item":"i","time":"{TIME}","a`b":"' + "x" * 5_000)[:1_000]


def test_a_quoted_line_end_is_part_of_its_field_where_the_settings_say_so(
    spark: SparkSession, loaded: Loaded, logs: Path
) -> None:
    (logs / "a.csv").write_text(f'user,item,time\nu,"one\ntwo",{TIME}\nuser,item,time\nu,three,{TIME}\n')
    warehouse, account = ingest(spark, load(loaded, logs, "csv", "ingest.csv_multiline=true"))
    assert {row["item_id"] for row in warehouse.read(EVENTS).collect()} == {"one\ntwo", "three"}
    assert account.rejected == {"repeated_header": 1}


def test_parquet_files_that_disagree_on_columns_and_types_are_read_together_and_broken_ones_set_aside(
    spark: SparkSession, loaded: Loaded, logs: Path
) -> None:
    at = datetime(2025, 7, 1, 12)
    moments = pa.array([at], pa.timestamp("us", "UTC"))
    tables = {
        "1 ints.parquet": pa.table({"user": pa.array([7], pa.int32()), "item": ["a"], "time": moments}),
        "2 longs.parquet": pa.table({"user": pa.array([8], pa.int64()), "item": ["b"], "time": moments}),
        "3 texts.parquet": pa.table({"user": ["9"], "item": ["c"], "time": ["2025-07-01T12:00:00Z"], "extra": [1]}),
        "4 none.parquet": pa.table({"user": ["9"], "time": ["2025-07-01T12:00:00Z"]}),
    }
    for name, table in tables.items():
        pq.write_table(table, logs / name)
    whole = (logs / "1 ints.parquet").read_bytes()
    (logs / "5 cut.parquet").write_bytes(whole[: len(whole) // 2])
    (logs / "6 empty.parquet").write_bytes(b"")
    config = load(loaded, logs, "parquet", "ingest.time_zone=Asia/Tokyo")
    warehouse = Warehouse(spark, config.warehouse)
    with pytest.raises(DataError, match="2 of 6 files cannot be read"):
        run_stage("ingest", warehouse, config)
    stored = sorted((row["user_id"], row["item_id"], row["event_time"]) for row in warehouse.read(EVENTS).collect())
    assert stored == [("7", "a", at), ("8", "b", at), ("9", "c", at)]
    assert sum(counts[0] for counts in ledger(warehouse).values()) == 4
    assert {name[:1]: set(reasons) for name, reasons in rejections(warehouse).items()} == {
        "4": {"missing_item"},
        "5": {"unreadable_file"},
        "6": {"unreadable_file"},
    }


def test_a_file_that_may_not_be_opened_is_named_and_one_that_is_gone_told_from_it() -> None:
    # As Spark reports them; the tests may run as root, whom no permission stops.
    modified_at = datetime(2025, 1, 1)
    files = [raw.RawFile(f"file:/logs/{name}", f"file:/logs/{name}", 1, modified_at) for name in ("a b", "a")]
    files[0] = raw.RawFile("file:/logs/a b", "file:/logs/a%20b", 1, modified_at)
    denied = (
        "[FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:///logs/a%20b.\n"
        "Caused by: java.io.FileNotFoundException: /logs/a b (Permission denied)\n"
    )
    gone = "[FAILED_READ_FILE.FILE_NOT_EXIST] Encountered error while reading file file:///logs/a. File does not exist."
    found = raw.unreadable_file(RuntimeError(denied), files)
    assert found is not None
    assert (found.uri, found.is_gone, "Permission denied" in found.detail) == ("file:/logs/a%20b", False, True)
    found = raw.unreadable_file(RuntimeError(gone), files)
    assert found is not None
    assert (found.uri, found.is_gone) == ("file:/logs/a", True)
    assert raw.unreadable_file(RuntimeError("Job aborted: /logs/a"), files) is None
