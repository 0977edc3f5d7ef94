"""Late events where bots are set aside and repeats collapsed: the tables are those of a run that saw all events at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.errors import DataError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, SESSIONS, SESSIONS_SET_ASIDE, Table
from llm_spark.tables.warehouse import Warehouse

START = datetime(2025, 1, 1)
RULES = [
    "ingest.columns={user: u, item: i, time: t}",
    "ingest.paths=[x]",
    "ingest.format=csv",
    "sessionize.num_buckets=2",
    "sessionize.collapse_repeats=true",
    "sessionize.bots.max_events=3",
    "sessionize.bots.max_events_per_minute=1.5",
]
Night = list[tuple[str, int, str]]  # user, minute, item

FIRST_NIGHT: Night = [
    *[("bot", minute, f"i{minute}") for minute in range(4)],
    *[("grows", minute, "a") for minute in range(3)],
    *[("joins", minute, "a") for minute in (0, 40)],
    *[("quiet", minute, "a") for minute in (0, 2)],
    *[("hasty", minute, f"h{minute}") for minute in range(2)],
    *[("other", minute, f"o{minute}") for minute in range(20)],
]
LATE: Night = [
    ("bot", 5, "late"),  # falls into a session that is set aside
    ("grows", 3, "a"),  # a fourth event makes a session a bot's
    ("joins", 20, "a"),  # two sessions become one, of three repeats
    ("hasty", -8, "late"),  # a longer session, begun in the year before, has fewer events a minute
    ("new", 0, "b"),
]


def run(spark: SparkSession, folder: Path, nights: list[Night], *overrides: str) -> tuple[Warehouse, list[Account]]:
    config: Config = settings.load(None, [f"warehouse={folder}", *RULES, *overrides], ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    accounts = []
    for number, night in enumerate(nights):
        rows = [
            (f"{user}-{minute}", user, item, "view", at, None, None, {}, at.date(), "file", START, "run")
            for user, minute, item in night
            for at in (START + timedelta(minutes=minute),)
        ]
        warehouse.append(EVENTS, spark.createDataFrame(rows, EVENTS.schema), f"night-{number}")
        accounts.append(run_stage("sessionize", warehouse, config))
    return warehouse, accounts


def contents(warehouse: Warehouse, table: Table) -> list[tuple]:
    return sorted(tuple(row) for row in warehouse.read(table).collect())


@pytest.fixture(scope="module")
def at_once(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Table], list[tuple]]:
    warehouse, _ = run(spark, tmp_path_factory.mktemp("at-once"), [FIRST_NIGHT + LATE])
    return lambda table: contents(warehouse, table)


def test_late_events_move_sessions_aside_and_back_and_the_tables_equal_those_of_one_run(
    spark: SparkSession, tmp_path: Path, at_once: Callable[[Table], list[tuple]]
) -> None:
    warehouse, (first, second) = run(spark, tmp_path, [FIRST_NIGHT, LATE])
    assert "set aside, too fast: 1 sessions of 1 users with 2 events" in first.remarks
    assert second.rows_in == {"new_events": 5}, "all sessions were rebuilt"
    assert contents(warehouse, SESSIONS) == at_once(SESSIONS)
    assert contents(warehouse, SESSIONS_SET_ASIDE) == at_once(SESSIONS_SET_ASIDE)
    aside = {row["user_id"]: row["num_events"] for row in warehouse.read(SESSIONS_SET_ASIDE).collect()}
    assert aside == {"bot": 5, "grows": 4, "other": 20}
    kept = {row["user_id"]: (row["num_events"], row["num_collapsed"]) for row in warehouse.read(SESSIONS).collect()}
    assert kept == {"joins": (1, 2), "quiet": (1, 1), "hasty": (3, 0), "new": (1, 0)}


@pytest.mark.slow
def test_nights_in_which_nobody_is_a_bot_are_incremental_and_can_be_repeated(
    spark: SparkSession, tmp_path: Path
) -> None:
    calm: Night = [(f"u{number}", 0, "a") for number in range(9)]
    warehouse, (_, second, third) = run(spark, tmp_path, [calm, [], [("u0", 9, "a")]])
    assert second.nothing_to_do
    assert third.rows_in == {"new_events": 1}
    assert warehouse.read(SESSIONS_SET_ASIDE).count() == 0


def test_a_late_event_that_leaves_nobody_is_refused_as_it_is_where_all_events_are_there_at_once(
    spark: SparkSession, tmp_path: Path
) -> None:
    rules = ["sessionize.bots.max_events_per_minute=0", "sessionize.bots.max_events=9"]
    alone: Night = [("grows", minute, f"i{minute}") for minute in range(9)]
    late: Night = [("grows", 9, "i9")]
    warehouse, _ = run(spark, tmp_path / "late", [alone], *rules)
    before = [contents(warehouse, table) for table in (SESSIONS, SESSIONS_SET_ASIDE)]
    for folder, nights in (("late", [[], late]), ("at once", [alone + late])):
        with pytest.raises(DataError, match="all 10 events are in sessions of bots"):
            run(spark, tmp_path / folder, nights, *rules)
    assert [contents(warehouse, table) for table in (SESSIONS, SESSIONS_SET_ASIDE)] == before


def test_a_run_killed_between_the_two_tables_is_mended_by_the_next(
    spark: SparkSession, tmp_path: Path, at_once: Callable[[Table], list[tuple]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_where = Warehouse.replace_where

    def killed(self: Warehouse, table: Table, *more: object) -> None:
        if table is SESSIONS:
            raise KeyboardInterrupt
        replace_where(self, table, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Warehouse, "replace_where", killed)
    with pytest.raises(KeyboardInterrupt):
        run(spark, tmp_path, [FIRST_NIGHT, LATE])
    monkeypatch.undo()
    warehouse, _ = run(spark, tmp_path, [[]])
    assert contents(warehouse, SESSIONS) == at_once(SESSIONS)
    assert contents(warehouse, SESSIONS_SET_ASIDE) == at_once(SESSIONS_SET_ASIDE)


@pytest.mark.slow
def test_under_a_limit_of_events_a_day_a_late_event_condemns_sessions_that_it_does_not_touch(
    spark: SparkSession, tmp_path: Path
) -> None:
    hourly: Night = [("busy", 60 * hour, "a") for hour in range(4)]
    day = ["sessionize.bots.max_events_per_day=4", "sessionize.bots.max_events=0"]
    warehouse, (first, second) = run(spark, tmp_path, [[*hourly, ("calm", 0, "a")], [("busy", 600, "a")]], *day)
    assert not first.remarks
    assert [row["user_id"] for row in warehouse.read(SESSIONS).collect()] == ["calm"]
    assert any("all sessions were rebuilt" in remark for remark in second.remarks)
