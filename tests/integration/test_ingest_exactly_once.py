"""Whatever happens to a run or to its files: the tables equal those of one clean run."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.pipelines import ingest as stage
from llm_spark.pipelines import ingest_batch
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES, SESSIONS
from llm_spark.tables import raw
from llm_spark.tables.warehouse import Warehouse
from tests.integration.ingesting import COLUMNS, Loaded, ledger
from tests.killing import Victim, kill_workers, table_rows

TABLES = (EVENTS, EVENTS_REJECTED, INGESTED_FILES)


def lines(first: int, last: int) -> str:
    """Events first..last-1, the first of them twice, and one that is broken."""
    made = [
        f'{{"user": "u{n % 7}", "item": "i{n}", "time": "2025-01-0{1 + n % 3}T00:00:00Z"}}\n'
        for n in range(first, last)
    ]
    return "".join([made[0], *made, f'{{"user": "u{first}"\n'])


def write(folder: Path) -> None:
    (folder / "a.jsonl").write_text(lines(0, 20))
    (folder / "b.jsonl").write_text(lines(10, 40))


@dataclass(frozen=True)
class Reference:
    logs: Path
    warehouse: Warehouse
    rows: dict[str, list[str]]


@pytest.fixture
def config(loaded: Loaded, reference: Reference) -> Config:
    """Settings for the reference's logs with a warehouse of this test."""
    return loaded(f"ingest.paths=[{reference.logs}]", "ingest.format=jsonl", *COLUMNS)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    write(folder)
    return folder


@pytest.fixture
def own(loaded: Loaded, logs: Path) -> Config:
    """Settings for logs of this test alone."""
    return loaded(f"ingest.paths=[{logs}]", "ingest.format=jsonl", *COLUMNS)


@pytest.fixture(scope="module")
def reference(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Logs that stay as they are, and the warehouse of one clean run over them."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "logs").mkdir()
    write(folder / "logs")
    given = [f"warehouse={folder / 'warehouse'}", f"ingest.paths=[{folder / 'logs'}]", "ingest.format=jsonl", *COLUMNS]
    config = settings.load(None, given, ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    run_stage("ingest", warehouse, config)
    return Reference(folder / "logs", warehouse, table_rows(warehouse, *TABLES))


def items(warehouse: Warehouse) -> list[str]:
    return sorted(row["item_id"] for row in warehouse.read(EVENTS).select("item_id").collect())


def test_a_rerun_a_lost_ledger_and_a_lost_acknowledgement_change_nothing(
    spark: SparkSession, config: Config, reference: Reference, monkeypatch: pytest.MonkeyPatch
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
    assert table_rows(warehouse, *TABLES) == reference.rows
    assert run_stage("ingest", warehouse, config).nothing_to_do
    shutil.rmtree(warehouse.path(INGESTED_FILES))
    run_stage("ingest", warehouse, config)
    assert table_rows(warehouse, *TABLES) == reference.rows


def test_a_file_renamed_after_it_was_ingested_is_taken_for_its_old_self(
    spark: SparkSession, own: Config, logs: Path
) -> None:
    warehouse = Warehouse(spark, own.warehouse)
    run_stage("ingest", warehouse, own)
    assert ledger(warehouse) == {"a.jsonl": (22, 20, 1, 1), "b.jsonl": (32, 20, 1, 11)}
    (logs / "b.jsonl").rename(logs / "c d.jsonl")
    account = run_stage("ingest", warehouse, own)
    assert account.rows_out["events"] == 0
    assert ledger(warehouse) == {"a.jsonl": (22, 20, 1, 1), "c%20d.jsonl": (32, 20, 1, 11)}
    assert items(warehouse) == sorted(f"i{n}" for n in range(40))
    names = [row["source_file"].rsplit("/", 1)[1] for row in warehouse.read(EVENTS_REJECTED).collect()]
    assert sorted(names) == ["a.jsonl", "c%20d.jsonl"]


def test_a_file_that_grows_while_it_is_read_waits_for_the_next_run(
    spark: SparkSession, own: Config, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(spark, own.warehouse)
    checked = raw.changed_files

    def grown(*arguments: object) -> list[raw.RawFile]:
        with (logs / "a.jsonl").open("a") as file:
            file.write(lines(50, 60))
        return checked(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(raw, "changed_files", grown)
        account = run_stage("ingest", warehouse, own)
    assert ledger(warehouse) == {"b.jsonl": (32, 30, 1, 1)}, "what both files hold is b's"
    assert items(warehouse) == sorted(f"i{n}" for n in range(10, 40))
    assert any("the next run reads it" in remark for remark in account.remarks)
    run_stage("ingest", warehouse, own)
    assert ledger(warehouse) == {"a.jsonl": (34, 20, 2, 12), "b.jsonl": (32, 30, 1, 1)}
    assert items(warehouse) == sorted(f"i{n}" for n in (*range(40), *range(50, 60)))


def test_a_file_that_vanishes_while_it_is_read_is_left_out(
    spark: SparkSession, own: Config, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ingest_batch.judged_records

    def vanishing(*arguments: object) -> object:
        judged = read(*arguments)  # type: ignore[arg-type]
        (logs / "a.jsonl").unlink(missing_ok=True)
        return judged

    monkeypatch.setattr(ingest_batch, "judged_records", vanishing)
    warehouse = Warehouse(spark, own.warehouse)
    run_stage("ingest", warehouse, own)
    assert ledger(warehouse) == {"b.jsonl": (32, 30, 1, 1)}
    assert items(warehouse) == sorted(f"i{n}" for n in range(10, 40))
    assert {row["source_file"][-7:] for row in warehouse.read(EVENTS_REJECTED).collect()} == {"b.jsonl"}


def test_of_two_runs_at_the_same_time_one_is_refused_and_nothing_counts_twice(
    spark: SparkSession, config: Config, reference: Reference, monkeypatch: pytest.MonkeyPatch
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
    assert table_rows(warehouse, EVENTS)["events"] == reference.rows["events"]


def test_a_driver_killed_while_events_are_written_is_made_good_by_the_next_run(
    spark: SparkSession, config: Config, reference: Reference, tmp_path: Path
) -> None:
    config_file = tmp_path / "settings.yaml"
    config_file.write_text(
        f"ingest: {{paths: [{reference.logs}], format: jsonl, columns: {{user: user, item: item, time: time}}}}\n"
    )
    warehouse = Warehouse(spark, config.warehouse)
    victim = Victim("ingest", config_file, Path(config.warehouse))
    assert victim.kill_when(lambda: any(Path(warehouse.path(EVENTS)).glob("event_date=*/*.parquet"))), "it ended before"
    run_stage("ingest", warehouse, config)
    assert table_rows(warehouse, *TABLES) == reference.rows


def test_python_workers_killed_in_sessionize_leave_no_trace_after_the_next_run(
    spark: SparkSession, config: Config, reference: Reference
) -> None:
    warehouse = reference.warehouse
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


def test_a_clock_that_was_moved_back_loses_no_event_and_one_that_had_run_ahead_stops_no_later_run(
    spark: SparkSession, config: Config, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(spark, config.warehouse)
    # What begin_run makes of it where the newest run is of next year.
    account = Account("ingest", started_at=datetime.now() + timedelta(days=365))
    with monkeypatch.context() as moved_back:
        moved_back.setattr(stage, "_now", lambda: datetime(2024, 12, 1))
        with pytest.raises(UserError, match=r"clock of this machine says 2024-12-01 00:00 UTC, .* set it") as told:
            stage.ingest(warehouse, config, account)
    assert "\n" not in str(told.value)
    assert not warehouse.exists(INGESTED_FILES)
    stage.ingest(warehouse, config, account)
    assert table_rows(warehouse, EVENTS) == {EVENTS.name: reference.rows[EVENTS.name]}
