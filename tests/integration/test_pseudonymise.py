"""No raw user id in any byte of the warehouse or line of the log; a key that is wrong is refused before anything is read."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from llm_spark import cli
from llm_spark.config import Config
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, SESSIONS
from llm_spark.tables.warehouse import Warehouse

KEY = "correct-horse-battery-staple-0123456789"
USERS = ["alice@example.com", "Žofie Nováková", "1785001", 'O"Brien\\E.7']
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
  columns: {{user: user, item: item, time: time, session: "concat(user, '-', visit)", attributes: {{mail: lower(user), agent: agent}}}}
  filters: ["item <> 'filtered'"]
  max_record_chars: 3000
  pseudonymise: true
"""
    )

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main([arguments[0], "--config", str(file), *arguments[1:]])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def write_logs(logs: Path) -> int:
    """Every way in which an id can stand in a record; returns how many events are right."""
    lines, num_events = [], 0
    for user in USERS:
        right = {"user": user, "item": "i", "time": "2025-01-01T00:00:00Z", "visit": "1", "agent": f"app for {user}/2"}
        lines += [right, right, {**right, "item": f"wall/{user}"}]
        num_events += 2
        lines += [{**right, "item": ""}, {**right, "time": user}, {**right, "item": "filtered"}]
        lines.append({**right, "agent": user * 1_000})
        lines.append({**right, "time": "1970-01-01"})
    texts = [json.dumps(line, ensure_ascii=place % 2 == 0) for place, line in enumerate(lines)]
    texts += [text[:-5] for text in texts[: len(texts) // 2]]
    (logs / "day 1.jsonl").write_text("\n".join(texts) + "\n")
    return num_events


def forms(user: str) -> set[bytes]:
    """How an id may be written down."""
    escaped = json.dumps(user)[1:-1]
    return {
        form.encode()
        for form in (user, user.lower(), escaped, escaped.lower(), json.dumps(user, ensure_ascii=False)[1:-1])
    }


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


def test_no_byte_of_the_warehouse_and_no_line_of_the_log_tells_a_user(
    command: Command, tmp_path: Path, spark: SparkSession
) -> None:
    num_events = write_logs(tmp_path / "logs")
    code, printed = command("ingest")
    assert code == 0, printed
    code, more = command("sessionize", "sessionize.num_buckets=2")
    assert code == 0, more
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    expected = {hmac.new(KEY.encode(), user.encode(), hashlib.sha256).hexdigest()[:32] for user in USERS}
    for table in (EVENTS, SESSIONS):
        assert {row["user_id"] for row in warehouse.read(table).collect()} == expected
    assert warehouse.read(EVENTS).count() == num_events
    reasons = {row["reason"] for row in warehouse.read(EVENTS_REJECTED).collect()}
    assert reasons == {"unparsable", "missing_item", "bad_time", "filtered", "too_long", "time_out_of_range"}
    written = everything_in(tmp_path / "warehouse")
    assert b"withheld: " in written, "the scan sees what the pages hold"
    for user in USERS:
        for form in forms(user):
            assert form not in written, form
            assert form not in (printed + more).encode(), form
    assert KEY.encode() not in written
    assert KEY not in printed + more


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
    code, printed = command("ingest")
    assert (code, "nothing to do" in printed) == (0, True), printed


def test_pseudonyms_are_not_put_beside_the_ids_of_an_open_warehouse_nor_made_where_a_column_would_tell_them(
    command: Command, tmp_path: Path
) -> None:
    write_logs(tmp_path / "logs")
    code, printed = command("ingest", "ingest.columns.item=user")
    assert (code, "ingest.columns.item 'user' is made of the user's column" in printed) == (2, True), printed
    named = tmp_path / "logs" / "alice@example.com.jsonl"
    (tmp_path / "logs" / "day 1.jsonl").rename(named)
    code, printed = command("ingest")
    assert (code, "rename it" in printed, "alice" in printed) == (3, True, False), printed
    assert not (tmp_path / "warehouse").exists()
    assert command("ingest", "ingest.pseudonymise=false")[0] == 0
    code, printed = command("ingest")
    assert (code, "holds user ids as they were logged" in printed) == (2, True), printed
