"""Whatever happens to a run or to its files: the tables equal those of one clean run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.pipelines import ingest as stage
from llm_spark.pipelines import ingest_batch
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES, SESSIONS
from llm_spark.tables import raw
from llm_spark.tables.warehouse import Warehouse
from tests.benchmarks.ingest_kill import Victim, kill_workers, table_rows

Loaded = Callable[..., Config]
COLUMNS = ["ingest.columns.user=user", "ingest.columns.item=item", "ingest.columns.time=time"]
TABLES = (EVENTS, EVENTS_REJECTED, INGESTED_FILES)


def lines(first: int, last: int) -> str:
    """Events first..last-1, the first of them twice, and one that is broken."""
    made = [
        f'{{"user": "u{n % 7}", "item": "i{n}", "time": "2025-01-0{1 + n % 3}T00:00:00Z"}}\n'
        for n in range(first, last)
    ]
    return "".join([made[0], *made, f'{{"user": "u{first}"\n'])


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(0, 20))
    (folder / "b.jsonl").write_text(lines(10, 40))
    return folder


@pytest.fixture
def config(loaded: Loaded, logs: Path) -> Config:
    return loaded(f"ingest.paths=[{logs}]", "ingest.format=jsonl", *COLUMNS)


def clean(spark: SparkSession, config: Config, folder: Path) -> Warehouse:
    """One run on a warehouse of its own."""
    warehouse = Warehouse(spark, str(folder / "clean"))
    run_stage("ingest", warehouse, config)
    return warehouse


def test_a_rerun_a_lost_ledger_and_a_lost_acknowledgement_change_nothing(
    spark: SparkSession, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(spark, config.warehouse)
    committed = warehouse.append_in_turn

    def unheard(*arguments: object) -> None:
        committed(*arguments)  # type: ignore[arg-type]
        raise ConnectionError("the commit is made, its acknowledgement lost")

    with monkeypatch.context() as patched:
        patched.setattr(warehouse, "append_in_turn", unheard)
        with pytest.raises(ConnectionError):
            run_stage("ingest", warehouse, config)
    run_stage("ingest", warehouse, config)
    expected = table_rows(clean(spark, config, tmp_path), *TABLES)
    assert table_rows(warehouse, *TABLES) == expected
    assert run_stage("ingest", warehouse, config).nothing_to_do
    shutil.rmtree(warehouse.path(INGESTED_FILES))
    run_stage("ingest", warehouse, config)
    assert table_rows(warehouse, *TABLES) == expected


def test_a_file_renamed_after_it_was_ingested_is_taken_for_its_old_self(
    spark: SparkSession, config: Config, logs: Path, tmp_path: Path
) -> None:
    warehouse = Warehouse(spark, config.warehouse)
    run_stage("ingest", warehouse, config)
    (logs / "b.jsonl").rename(logs / "c d.jsonl")
    account = run_stage("ingest", warehouse, config)
    assert account.rows_out["events"] == 0
    expected = clean(spark, config, tmp_path)
    assert table_rows(warehouse, EVENTS, without=("source_file",)) == table_rows(
        expected, EVENTS, without=("source_file",)
    )
    assert table_rows(warehouse, EVENTS_REJECTED, INGESTED_FILES) == table_rows(
        expected, EVENTS_REJECTED, INGESTED_FILES
    )


def test_a_copy_under_another_name_is_rejected_and_counted_as_its_own_file(
    spark: SparkSession, config: Config, logs: Path, tmp_path: Path
) -> None:
    warehouse = Warehouse(spark, config.warehouse)
    run_stage("ingest", warehouse, config)
    shutil.copy2(logs / "b.jsonl", logs / "c.jsonl")
    run_stage("ingest", warehouse, config)
    assert table_rows(warehouse, *TABLES) == table_rows(clean(spark, config, tmp_path), *TABLES)


def test_a_file_that_grows_while_it_is_read_waits_for_the_next_run(
    spark: SparkSession, config: Config, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(spark, config.warehouse)
    checked = raw.changed_files

    def grown(*arguments: object) -> list[raw.RawFile]:
        with (logs / "a.jsonl").open("a") as file:
            file.write(lines(50, 60))
        return checked(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(raw, "changed_files", grown)
        account = run_stage("ingest", warehouse, config)
    assert account.rows_in == {"files": 1, "records": 32}
    assert account.rows_out == {"events": 30, "duplicates": 1, "rejected": 1}, "what both files hold is b's"
    assert [row["source_file"][-7:] for row in warehouse.read(INGESTED_FILES).collect()] == ["b.jsonl"]
    assert any("the next run reads it" in remark for remark in account.remarks)
    run_stage("ingest", warehouse, config)
    ids = ("event_id", "user_id", "item_id", "event_time")
    expected = clean(spark, config, tmp_path).read(EVENTS).select(*ids)
    assert sorted(warehouse.read(EVENTS).select(*ids).collect()) == sorted(expected.collect())
    ledger = warehouse.read(INGESTED_FILES).collect()
    assert sum(row["num_records"] for row in ledger) == 22 + 12 + 32


def test_a_file_that_vanishes_while_it_is_read_is_left_out(
    spark: SparkSession, config: Config, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ingest_batch.judged_records

    def vanishing(*arguments: object) -> object:
        judged = read(*arguments)  # type: ignore[arg-type]
        (logs / "a.jsonl").unlink(missing_ok=True)
        return judged

    monkeypatch.setattr(ingest_batch, "judged_records", vanishing)
    warehouse = Warehouse(spark, config.warehouse)
    account = run_stage("ingest", warehouse, config)
    assert account.rows_in == {"files": 1, "records": 32}
    assert {row["source_file"][-7:] for row in warehouse.read(EVENTS).collect()} == {"b.jsonl"}
    assert {row["source_file"][-7:] for row in warehouse.read(EVENTS_REJECTED).collect()} == {"b.jsonl"}


def test_of_two_runs_at_the_same_time_one_is_refused_and_nothing_counts_twice(
    spark: SparkSession, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse, other = Warehouse(spark, config.warehouse), Warehouse(spark, config.warehouse)
    write = stage._write_events

    def overtaken(*arguments: object) -> None:
        monkeypatch.undo()
        run_stage("ingest", other, config)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "_write_events", overtaken)
    with pytest.raises(UserError, match="did another ingest write there"):
        run_stage("ingest", warehouse, config)
    assert table_rows(warehouse, EVENTS) == table_rows(clean(spark, config, tmp_path), EVENTS)


def test_a_driver_killed_while_events_are_written_is_made_good_by_the_next_run(
    spark: SparkSession, config: Config, tmp_path: Path
) -> None:
    config_file = tmp_path / "settings.yaml"
    config_file.write_text(
        f"ingest: {{paths: [{tmp_path / 'logs'}], format: jsonl, columns: {{user: user, item: item, time: time}}}}\n"
    )
    warehouse = Warehouse(spark, config.warehouse)
    victim = Victim("ingest", config_file, Path(config.warehouse))
    assert victim.kill_when(lambda: any(Path(warehouse.path(EVENTS)).glob("event_date=*/*.parquet"))), "it ended before"
    run_stage("ingest", warehouse, config)
    assert table_rows(warehouse, *TABLES) == table_rows(clean(spark, config, tmp_path), *TABLES)


def test_python_workers_killed_in_sessionize_leave_no_trace_after_the_next_run(
    spark: SparkSession, config: Config, tmp_path: Path
) -> None:
    warehouse = clean(spark, config, tmp_path)
    shutil.copytree(warehouse.root, config.warehouse)
    run_stage("sessionize", warehouse, config)
    survivor = Warehouse(spark, config.warehouse)
    outcome: list[BaseException] = []

    def attempt() -> None:
        try:
            run_stage("sessionize", survivor, config)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    num_killed = kill_workers(until=lambda: not thread.is_alive())
    thread.join()
    assert num_killed > 0
    run_stage("sessionize", survivor, config)
    assert table_rows(survivor, SESSIONS) == table_rows(warehouse, SESSIONS)
