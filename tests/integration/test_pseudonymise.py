"""No raw user id in any byte of the warehouse or line of the log; a key that is wrong is refused before anything is read."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from llm_spark import cli
from llm_spark.config import Config
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, SEQUENCES, SESSIONS, USER_MEMORY, VOCABULARY
from llm_spark.tables import raw
from llm_spark.tables.warehouse import Warehouse

KEY = "correct-horse-battery-staple-0123456789"
USERS = ["alice@example.com", "Žofie Nováková", "1785001", 'O"Brien\\E.7']
ROBOT = "qa-robot@shop.com"
"""Named by a filter."""
SMALL = (
    "sessionize.num_buckets=2",
    "sequences.split=leave_last_event_out",
    "sequences.min_item_count=1",
    "model.embedding_size=8",
    "model.hidden_size=8",
    "model.dense_size=8",
    "model.memory_size=4",
    "train.num_epochs=1",
    "train.device=cpu",
    "gate.enabled=false",
    "evaluate.num_replicates=40",
    "evaluate.baselines=[popularity]",
    "score.reasons=1",
)
ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run `llm-spark STAGE` in this process; gives the exit code and all that it printed."""

    def with_shared_spark(loaded: Config, work: Callable[[Warehouse], None]) -> None:
        work(Warehouse(spark, loaded.warehouse))

    monkeypatch.setattr(cli, "_with_spark", with_shared_spark)
    monkeypatch.setenv("LLM_SPARK_PSEUDONYM_KEY", KEY)
    (tmp_path / "logs").mkdir()
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"""
warehouse: {tmp_path / "warehouse"}
ingest:
  paths: ["{tmp_path / "logs"}"]
  format: jsonl
  columns:
    {{user: user, item: item, time: time, type: kind, session: "concat(user, '-', visit)",
      attributes: {{mail: lower(user), agent: agent, link: link}}}}
  filters: ["item <> 'filtered'", "user <> '{ROBOT}'"]
  max_record_chars: 3000
  pseudonymise: true
  pseudonymise_also: [item]
"""
    )

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main([arguments[0], "--config", str(file), *arguments[1:]])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def write_logs(logs: Path, form: str = "jsonl") -> int:
    """Every way in which an id can stand in a record; returns how many events are right."""
    rows: list[dict[str, str]] = []
    num_events = 0
    for place, user in enumerate(USERS):
        right = {
            "user": user,
            "item": USERS[place - 1],
            "time": "2025-01-01T00:00:00Z",
            "kind": "visit",
            "visit": "1",
            "agent": f"app for {user}/2",
            "link": f"/?q=100%&mail={quote(user, safe='')}&name={quote_plus(user.lower())}",
        }
        shop = {**right, "item": "shop"}
        later, last = "2025-01-02T00:00:00Z", "2025-01-03T00:00:00Z"
        rows += [right, right, {**shop, "kind": f"visit of {user}", "time": later}, {**right, "time": last}]
        # Enough for a model to learn of.
        rows += [{**shop, "time": f"2024-12-2{day}T00:00:00Z"} for day in range(1, 6)]
        num_events += 8
        rows += [{**right, "item": ""}, {**right, "time": user}, {**right, "item": "filtered"}]
        rows.append({**right, "agent": user * 1_000})
        rows.append({**right, "time": "1970-01-01"})
    rows.append({**rows[0], "user": ROBOT})
    file = logs / f"day 1.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif form == "csv":
        with file.open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerows([list(rows[0]), *(row.values() for row in rows)])
            writer.writerows(list(row.values())[:3] for row in rows[: len(rows) // 2])
    else:
        texts = [json.dumps(row, ensure_ascii=place % 2 == 0) for place, row in enumerate(rows)]
        texts += [text[:-5] for text in texts[: len(texts) // 2]]
        file.write_text("\n".join(texts) + "\n")
    return num_events


def forms(user: str) -> set[bytes]:
    """How an id may be written down."""
    written = {form for text in (user, user.lower()) for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1])}
    written |= {json.dumps(text, ensure_ascii=False)[1:-1] for text in (user, user.lower())}
    coded = {encode(text) for text in (user, user.lower()) for encode in (quote, quote_plus)}
    return {form.encode() for form in (*written, *coded, *(text.replace("%", "%25") for text in coded))}


def everything_in(folder: Path) -> bytes:
    """The bytes of every file and its name, and every value inside the Parquet pages."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            found.append(path.read_bytes())
        if path.suffix == ".parquet":
            found.append(repr(pq.ParquetFile(path).read().to_pylist()).encode())
    return b"\n".join(found)


def require_nothing_told(written: bytes, printed: str) -> None:
    assert b"withheld: " in written, "the scan sees what the pages hold"
    for user in (*USERS, ROBOT):
        for form in forms(user):
            assert form not in written, form
            assert form not in printed.encode(), form
    assert KEY.encode() not in written
    assert KEY not in printed


def require_all_accounted_for(warehouse: Warehouse, num_events: int, *reasons: str) -> None:
    found = warehouse.read(EVENTS).collect()
    friends = {pseudonym(user) for user in USERS}
    assert {row["user_id"] for row in found} == friends
    assert {row["item_id"] for row in found} == {*friends, pseudonym("shop")}
    assert len(found) == num_events
    links = {row["attributes"]["link"] for row in found}
    assert links == {f"/?q=100%&mail={friend}&name={friend}" for friend in friends}
    rejected = {row["reason"] for row in warehouse.read(EVENTS_REJECTED).collect()}
    assert rejected == {"bad_time", "filtered", "too_long", "time_out_of_range", *reasons}


def pseudonym(user: str) -> str:
    return hmac.new(KEY.encode(), user.encode(), hashlib.sha256).hexdigest()[:32]


@pytest.mark.parametrize("last", ["sequences", pytest.param("report", marks=pytest.mark.slow)])
def test_no_byte_of_the_warehouse_and_no_line_of_the_log_tells_a_user(
    command: Command, tmp_path: Path, spark: SparkSession, last: str
) -> None:
    num_events = write_logs(tmp_path / "logs")
    printed = ""
    stages = ("ingest", "sessionize", "sequences", "train", "evaluate", "score", "report")
    stages = stages[: stages.index(last) + 1]
    for stage in stages:
        code, more = command(stage, *(SMALL if stage != "ingest" else ()))
        printed += more
        assert code == 0, more
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    require_all_accounted_for(warehouse, num_events, "unparsable", "missing_item")
    for table in (SESSIONS, SEQUENCES, USER_MEMORY) if last == "report" else (SESSIONS, SEQUENCES):
        assert {row["user_id"] for row in warehouse.read(table).collect()} == {pseudonym(user) for user in USERS}
    assert pseudonym(USERS[0]) in {row["item_id"] for row in warehouse.read(VOCABULARY).collect()}
    assert (last == "report") == (tmp_path / "warehouse" / "reports").exists()
    require_nothing_told(everything_in(tmp_path / "warehouse"), printed)


def test_nor_where_the_records_came_from_parquet(command: Command, tmp_path: Path, spark: SparkSession) -> None:
    num_events = write_logs(tmp_path / "logs", "parquet")
    code, printed = command("ingest", "ingest.format=parquet")
    assert code == 0, printed
    require_all_accounted_for(Warehouse(spark, str(tmp_path / "warehouse")), num_events, "missing_item")
    require_nothing_told(everything_in(tmp_path / "warehouse"), printed)


@pytest.mark.usefixtures("command")
def test_nor_does_what_the_jvm_prints_of_a_run_on_csv(tmp_path: Path, spark: SparkSession) -> None:
    num_events = write_logs(tmp_path / "logs", "csv")
    small = ["spark.master=local[1]", "spark.driver_memory=1g", "spark.shuffle_partitions=2"]
    words = ["ingest", "--config", str(tmp_path / "settings.yaml"), "ingest.format=csv", *small]
    command = [sys.executable, "-m", "llm_spark.cli", *words, "spark.java_options=-XX:TieredStopAtLevel=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    require_all_accounted_for(Warehouse(spark, str(tmp_path / "warehouse")), num_events, "unparsable")
    require_nothing_told(everything_in(tmp_path / "warehouse"), done.stdout + done.stderr)


def test_a_key_that_is_missing_short_open_to_others_or_another_is_refused_in_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_logs(tmp_path / "logs")
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o640)
    monkeypatch.delenv("LLM_SPARK_PSEUDONYM_KEY")
    paths = "ingest.paths=[/nowhere]"  # it would be told if it were looked at
    by_file = f"ingest.pseudonym_key_file={key_file}"
    for given, told in (
        ((), "needs a key"),
        ((by_file,), "mode 0640"),
        (("ingest.pseudonym_key_file=/none",), "'/none'"),
    ):
        code, printed = command("ingest", paths, *given)
        assert (code, told in printed, len(printed.splitlines())) == (2, True, 1), printed
    monkeypatch.setenv("LLM_SPARK_PSEUDONYM_KEY", "short")
    code, printed = command("ingest", paths)
    assert (code, "has 5 bytes, 32 are needed" in printed) == (2, True), printed
    assert "short" not in printed.replace("shorter", "")
    assert not (tmp_path / "warehouse").exists()
    monkeypatch.delenv("LLM_SPARK_PSEUDONYM_KEY")
    key_file.chmod(0o600)
    assert command("ingest", by_file)[0] == 0
    monkeypatch.setenv("LLM_SPARK_PSEUDONYM_KEY", KEY[::-1])
    code, printed = command("ingest")
    assert (code, "give the key it was written with" in printed) == (2, True), printed
    code, printed = command("ingest", "ingest.pseudonymise=false")
    assert (code, "set ingest.pseudonymise=true" in printed) == (2, True), printed
    monkeypatch.setenv("LLM_SPARK_PSEUDONYM_KEY", KEY)
    code, printed = command("ingest", "ingest.pseudonymise_also=[]")
    assert (code, "was written with ingest.pseudonymise_also=[item], and [] is given" in printed) == (2, True), printed
    code, printed = command("ingest")
    assert (code, "nothing to do" in printed) == (0, True), printed


def test_pseudonyms_are_not_put_beside_the_ids_of_an_open_warehouse_nor_made_where_a_column_would_tell_them(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_logs(tmp_path / "logs")
    code, printed = command("ingest", "ingest.columns.item=user", "ingest.pseudonymise_also=[]")
    assert (code, "ingest.columns.item 'user' is made of the user's column" in printed) == (2, True), printed
    named = tmp_path / "logs" / "alice@example.com.jsonl"
    (tmp_path / "logs" / "day 1.jsonl").rename(named)
    code, printed = command("ingest")
    assert (code, "/logs/….jsonl', holds the id" in printed, "alice" in printed) == (3, True, False), printed
    assert not (tmp_path / "warehouse").exists()
    with monkeypatch.context() as written_to:
        written_to.setattr(raw, "changed_files", lambda _, files: list(files))
        code, printed = command("ingest")
    assert (code, "/logs/….jsonl', holds the id" in printed, "alice" in printed) == (3, True, False), printed
    code, printed = command("nightly", "--dry-run")
    assert (code, "read 1 new or changed files" in printed, "alice" in printed) == (0, True, False), printed
    assert command("ingest", "ingest.pseudonymise=false")[0] == 0
    written = everything_in(tmp_path / "warehouse")
    assert all(any(form in written for form in forms(user)) for user in (*USERS, ROBOT)), "the scan finds what is there"
    code, printed = command("ingest")
    assert (code, "holds user ids as they were logged" in printed) == (2, True), printed
