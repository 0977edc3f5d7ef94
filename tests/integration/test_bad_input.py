"""What a user can get wrong: one line with the remedy, the right exit code, no half-written table."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import cli
from llm_spark.config import Config
from llm_spark.pipelines.account import Account, Check
from llm_spark.schemas import (
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    PREDICTIONS,
    RUNS,
    SEQUENCES,
    SESSIONS,
    VOCABULARY,
)
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.certificate import LAWS
from tests.integration.conftest import SMALL_MODEL, Chain

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `llm-spark` in this process on the shared session; gives the exit code and the error line."""

    def with_shared_spark(loaded: Config, work: Callable[[Warehouse], None]) -> None:
        work(Warehouse(spark, loaded.warehouse))

    monkeypatch.setattr(cli, "_with_spark", with_shared_spark)

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main(list(arguments))
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llm-spark ")]
        assert len(errors) == (code != 0)
        return code, errors[0] if errors else ""

    return run


@pytest.fixture
def config_file(tmp_path: Path, logs: Path) -> str:
    file = tmp_path / "a.yaml"
    file.write_text(
        f"""
warehouse: {tmp_path / "warehouse"}
ingest:
  paths: ["{logs}"]
  format: csv
  columns: {{user: user, item: item, time: time}}
sequences: {{min_item_count: 1, train_until: "2025-01-03", validation_until: "2025-01-04"}}
"""
    )
    return str(file)


def write_days(logs: Path, users: int = 6, items: int = 5, days: int = 5) -> None:
    lines = ["user,item,time"]
    lines += [
        f"u{user},i{(user + step) % items},2025-01-0{day}T10:0{step}:00Z"
        for day in range(1, days + 1)
        for user in range(users)
        for step in range(3)
    ]
    (logs / "days.csv").write_text("\n".join(lines) + "\n")


def test_a_path_that_matches_nothing(command: Command, config_file: str, tmp_path: Path) -> None:
    code, error = command("ingest", "--config", config_file, "ingest.paths=[/nowhere/*.csv]")
    assert code == 1
    assert "nothing matches '/nowhere/*.csv'" in error
    assert not (tmp_path / "warehouse").exists()


def test_an_unknown_key(command: Command, config_file: str) -> None:
    code, error = command("ingest", "--config", config_file, "ingest.time_fromat=iso8601")
    assert code == 2
    assert "'ingest.time_format'" in error


def test_no_config_at_all(command: Command) -> None:
    code, error = command("ingest")
    assert code == 2
    assert "ingest.paths" in error
    assert "ingest.columns.user" in error


def test_a_missing_column_lists_those_that_are_there(
    command: Command, config_file: str, logs: Path, tmp_path: Path
) -> None:
    write_days(logs)
    code, error = command("ingest", "--config", config_file, "ingest.columns.user=customer")
    assert code == 2
    assert "ingest.columns.user: 'customer'" in error
    assert "user, item, time" in error
    assert not (tmp_path / "warehouse").exists()


def test_a_missing_column_that_spark_would_take_for_the_account_it_runs_under(
    command: Command, config_file: str, logs: Path
) -> None:
    (logs / "a.csv").write_text("customer,item,time\nc,i,2025-01-01T00:00:00Z\n")
    code, error = command("ingest", "--config", config_file)
    assert code == 2
    assert "'user' is not among the columns found: customer, item, time" in error


def test_a_missing_json_field_lists_those_that_are_there(command: Command, config_file: str, logs: Path) -> None:
    (logs / "a.jsonl").write_text('{"who": "u", "item": "i", "time": "2025-01-01T00:00:00Z"}\n')
    code, error = command("ingest", "--config", config_file, "ingest.format=jsonl")
    assert code == 2
    assert "item, time, who" in error


def test_an_expression_that_does_not_parse(command: Command, config_file: str, logs: Path) -> None:
    write_days(logs)
    code, error = command("ingest", "--config", config_file, "ingest.columns.item=upper(item")
    assert code == 2
    assert "ingest.columns.item" in error


def test_a_filter_that_would_cut_decimals_off_a_text_column(command: Command, config_file: str, logs: Path) -> None:
    (logs / "a.csv").write_text("user,item,time,price\nu,i,2025-01-01T00:00:00Z,0.85\n")
    code, error = command("ingest", "--config", config_file, "ingest.filters=[price > 0]")
    assert code == 2
    assert "double(price)" in error
    assert command("ingest", "--config", config_file, "ingest.filters=[double(price) > 0]")[0] == 0


def test_an_unparsable_time_format(command: Command, config_file: str, logs: Path) -> None:
    write_days(logs)
    code, error = command("ingest", "--config", config_file, "ingest.time_format=yyyy-qq-bb")
    assert code == 2
    assert "ingest.time_format 'yyyy-qq-bb'" in error


def test_a_time_format_that_matches_no_record(
    command: Command, config_file: str, logs: Path, tmp_path: Path, spark: SparkSession
) -> None:
    write_days(logs)
    code, error = command("ingest", "--config", config_file, "ingest.time_format=dd.MM.yyyy")
    assert code == 3
    assert "none of 90 records was accepted" in error
    assert "2025-01-0" in error
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    assert not warehouse.exists(EVENTS)
    assert warehouse.read(EVENTS_REJECTED).count() == 90
    assert command("ingest", "--config", config_file)[0] == 0, "with the right format"
    assert warehouse.read(EVENTS_REJECTED).count() == 0, "what was judged anew is not rejected any more"


def test_empty_files_alone_and_beside_others(command: Command, config_file: str, logs: Path) -> None:
    (logs / "empty.csv").write_text("")
    code, error = command("ingest", "--config", config_file)
    assert code == 3
    assert "empty.csv" in error
    write_days(logs)
    assert command("ingest", "--config", config_file)[0] == 0


def test_a_truncated_gzip_is_set_aside_and_read_once_it_is_repaired(
    command: Command, config_file: str, logs: Path, tmp_path: Path, spark: SparkSession
) -> None:
    write_days(logs)
    whole = gzip.compress(b"user,item,time\n" + b"".join(b"u9,i%d,2025-01-01T00:00:00Z\n" % n for n in range(9_000)))
    (logs / "broken.csv.gz").write_bytes(whole[: len(whole) // 2])
    code, error = command("ingest", "--config", config_file)
    assert code == 3, error
    assert "broken.csv.gz" in error
    assert "repair or remove" in error
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    assert warehouse.read(EVENTS).count() == 90
    assert [row["reason"] for row in warehouse.read(EVENTS_REJECTED).collect()] == ["unreadable_file"]
    assert warehouse.read(RUNS).count() == 1
    assert warehouse.read(INGESTED_FILES).count() == 1
    (logs / "broken.csv.gz").write_bytes(whole)
    assert command("ingest", "--config", config_file)[0] == 0
    assert warehouse.read(EVENTS).count() == 90 + 9_000
    assert warehouse.read(EVENTS_REJECTED).count() == 0


def test_too_many_rejected_records_stop_the_night_before_any_event_is_written(
    command: Command, config_file: str, logs: Path, tmp_path: Path, spark: SparkSession
) -> None:
    write_days(logs)
    with (logs / "days.csv").open("a") as file:
        file.write(",i1,2025-01-01T00:00:00Z\n" * 30)
    code, error = command("ingest", "--config", config_file, "ingest.max_rejected_fraction=0.2")
    assert code == 3
    assert "30 of 120 records" in error
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"))
    assert not warehouse.exists(EVENTS)
    assert warehouse.read(EVENTS_REJECTED).count() == 30


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ("sessionize", "ingest"),
        ("sequences", "sessionize"),
        ("train", "sequences"),
        ("evaluate", "train"),
        ("score", "train"),
    ],
)
def test_a_table_of_an_older_stage_missing(
    command: Command, config_file: str, tmp_path: Path, stage: str, needed: str
) -> None:
    code, error = command(stage, "--config", config_file)
    assert code == 1
    assert f"run `llm-spark {needed}` first" in error
    assert not (tmp_path / "warehouse" / "tables").exists()


def test_a_vocabulary_of_too_few_items(command: Command, chain: Chain, chain_until: Callable[[str], Warehouse]) -> None:
    warehouse = chain_until("sessionize")
    given = ("sequences", "--config", str(chain.config_file), f"warehouse={warehouse.root}", *SMALL_MODEL)
    for setting, num_items in (("sequences.max_items=1", 1), ("sequences.min_item_count=1000000", 0)):
        code, error = command(*given, setting)
        assert code == 3
        assert f"the vocabulary has {num_items} items" in error
    assert not warehouse.exists(SEQUENCES)
    assert not warehouse.exists(VOCABULARY)


def test_fewer_training_sequences_than_ranks(
    command: Command, chain: Chain, chain_until: Callable[[str], Warehouse]
) -> None:
    warehouse = chain_until("sequences")
    longest = warehouse.read(SEQUENCES).where("split = 'train'").orderBy(F.desc(F.size("tokens")), "sequence_id")
    warehouse.replace(SEQUENCES, longest.limit(1).localCheckpoint(), warehouse.origin(SEQUENCES) or {})
    given = ("--config", str(chain.config_file), f"warehouse={warehouse.root}", *SMALL_MODEL)
    code, error = command("train", *given, "train.num_ranks=2")
    assert (code, "have no certificate: run `llm-spark sequences`" in error) == (3, True)
    # As if all laws had been found to hold.
    subject, table = f"sequences v{warehouse.data_version(SEQUENCES)}", warehouse.log(SEQUENCES).table_id
    account = Account("sequences")
    account.checks += [Check(name, subject, 0.0, 0.0, detail=f"table {table}: by hand") for name in LAWS]
    account.record_checks(warehouse)
    code, error = command("train", *given, "train.num_ranks=2")
    assert code == 1
    assert "train.num_ranks=1 or fewer" in error


def test_splits_that_leave_nothing_to_train_on(
    command: Command, chain: Chain, chain_until: Callable[[str], Warehouse]
) -> None:
    root = chain_until("sessionize").root
    given = ("sequences", "--config", str(chain.config_file), f"warehouse={root}", *SMALL_MODEL)

    def split_at(train_until: str, validation_until: str = "2025-01-11") -> tuple[int, str]:
        return command(*given, f"sequences.train_until={train_until}", f"sequences.validation_until={validation_until}")

    code, error = split_at("2025-01-11", "2025-01-10")
    assert (code, "sequences.train_until before" in error) == (2, True)
    code, error = split_at("soon")
    assert (code, "'soon'" in error) == (2, True)
    code, error = split_at("2025-01-10T00:00:00.5")
    assert (code, "whole seconds" in error) == (2, True)
    code, error = split_at("2020-01-01")
    assert (code, "the vocabulary has 0 items" in error) == (3, True)


def test_a_wrong_time_zone(command: Command, config_file: str, logs: Path) -> None:
    write_days(logs)
    code, error = command("ingest", "--config", config_file, "ingest.time_zone=Europe/Nowhere")
    assert (code, "Europe/Nowhere" in error) == (2, True)


def test_an_as_of_day_before_the_first_event_or_no_date(chain: Chain, command: Command, spark: SparkSession) -> None:
    before = chain.warehouse.version(PREDICTIONS)
    code, error = command("score", "--config", str(chain.config_file), "as_of=2001-01-01")
    assert code == 2
    assert "before the first event" in error
    code, error = command("score", "--config", str(chain.config_file), "as_of=tomorrow")
    assert (code, "write a date" in error) == (2, True)
    assert chain.warehouse.version(PREDICTIONS) == before


def test_a_damaged_model_artifact(chain: Chain, command: Command, copied: Warehouse) -> None:
    (weights,) = Path(copied.root).glob("models/*/*.safetensors")
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    score = ("score", "--config", str(chain.config_file), f"warehouse={copied.root}", "score.k=3")
    code, error = command(*score)
    assert code == 1
    assert weights.name in error
    weights.write_bytes(kept)
    assert command(*score)[0] == 0, "a copied warehouse works"


def test_a_wrong_query(chain: Chain, command: Command) -> None:
    code, error = command("sql", "SELECT * FROM nothing", "--config", str(chain.config_file))
    assert code == 1
    assert "Tables here" in error


def test_a_folder_that_holds_something_else_is_not_simulated_over(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    code, error = command("simulate", str(tmp_path), "num_users=3")
    assert code == 2
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert "num_users" not in error


def test_sessions_are_not_touched_by_a_failed_stage(command: Command, chain: Chain, copied: Warehouse) -> None:
    before = copied.version(SESSIONS)
    given = ("sessionize", "--config", str(chain.config_file), f"warehouse={copied.root}", *SMALL_MODEL)
    assert command(*given, "sessionize.gap_seconds=0")[0] == 2
    assert copied.version(SESSIONS) == before
