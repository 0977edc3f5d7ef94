"""Events that come after their sessions were made: the table equals a full recompute, and what they do not touch stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import deltalake
import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark.errors import UsageError
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.maintain import maintain
from llm_spark.schemas import EVENTS, SESSIONS
from llm_spark.tables.maintenance import remove_old_files
from llm_spark.tables.warehouse import Warehouse
from tests.integration.session_logs import (
    LoggedEvent,
    arrive,
    found_sessions,
    reference_sessions,
    sessionized,
    settings,
    was_rebuilt_wholly,
)

START = datetime(2025, 3, 31, 23, 50)


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "warehouse"))


def event(user: str, seconds: int, name: str, key: str | None = None) -> LoggedEvent:
    return LoggedEvent(name, user, START + timedelta(seconds=seconds), key)


def many_users(num: int = 40) -> list[LoggedEvent]:
    """Two sessions a user: one in March, one in April."""
    return [event(f"v{user}", at, f"v{user}-{at}") for user in range(num) for at in (0, 10, 1_000, 1_010)]


def months_of(user: str, events: list[LoggedEvent]) -> list[tuple[int, int]]:
    """In which a session of the user should begin and end."""
    rows = reference_sessions(events, settings())
    return [(began_at.month, ended_at.month) for _, of, _, began_at, ended_at, *_ in rows if of == user]


def rows_by_file(warehouse: Warehouse) -> dict[str, bytes]:
    root = Path(warehouse.path(SESSIONS))
    files = [row[0] for row in warehouse.read(SESSIONS).select("_metadata.file_path").distinct().collect()]
    paths = [Path(file.removeprefix("file://").removeprefix("file:")) for file in files]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[LoggedEvent]]:
    folder = tmp_path_factory.mktemp("evening") / "warehouse"
    warehouse = Warehouse(spark, str(folder))
    twice = [event("u", seconds, name) for seconds, name in ((0, "a"), (10, "b"), (60, "d"), (70, "e"))]
    over_midnight = [event("t", seconds, f"t{seconds}") for seconds in (590, 605)]
    after_midnight = [event("m", seconds, f"m{seconds}") for seconds in (605, 615)]
    events = [*many_users(), *twice, *over_midnight, *after_midnight]
    arrive(warehouse, events)
    sessionized(warehouse, settings())
    return folder, events


@pytest.fixture
def evening(
    prepared: tuple[Path, list[LoggedEvent]], spark: SparkSession, tmp_path: Path
) -> tuple[Warehouse, list[LoggedEvent]]:
    """Sessions of many users, of one `u`, who came twice within what may become one session, of `t` from the last seconds of March to the first
    of April, and of `m` in these alone; to change at will."""
    folder, events = prepared
    shutil.copytree(folder, tmp_path / "evening")
    return Warehouse(spark, str(tmp_path / "evening")), events


def test_a_late_event_that_joins_two_sessions_leaves_all_others_and_their_files_alone(
    evening: tuple[Warehouse, list[LoggedEvent]],
) -> None:
    warehouse, events = evening
    ids = {row["session_id"] for row in warehouse.read(SESSIONS).where("user_id <> 'u'").collect()}
    files = rows_by_file(warehouse)
    late = event("u", 35, "c")
    arrive(warehouse, [late])
    account = sessionized(warehouse, settings())
    assert (account.rows_in, account.rows_out) == ({"new_events": 1}, {"sessions rebuilt": 1})
    joined = warehouse.read(SESSIONS).where("user_id = 'u'").collect()
    assert [row["item_ids"] for row in joined] == [["a", "b", "c", "d", "e"]]
    others = warehouse.read(SESSIONS).where("user_id <> 'u'")
    assert {row["session_id"] for row in others.collect()} == ids
    now = rows_by_file(warehouse)
    (part,) = {(row["started_month"], row["user_bucket"]) for row in joined}
    elsewhere = {name for name in files if f"{part[0]}/user_bucket={part[1]}" not in name}
    assert len(elsewhere) == len(files) - 1 == 3
    assert all(now[name] == files[name] for name in elsewhere)
    assert found_sessions(warehouse.read(SESSIONS)) == reference_sessions([*events, late], settings())


def test_a_session_that_ends_at_the_instant_at_which_a_touched_one_begins_is_made_again_with_it(
    warehouse: Warehouse,
) -> None:
    config = settings(max_events=2)
    events = [event("u", seconds, name) for seconds, name in ((0, "a"), (10, "b"), (10, "c"), (20, "d"))]
    others = [event("v", seconds, f"v{seconds}") for seconds in range(0, 4_000, 100)]
    arrive(warehouse, [*events, *others])
    sessionized(warehouse, config)
    # Within a gap of the second session alone; which of the two has b and which c is told by their ids.
    late = event("u", 20 + config.sessionize.gap_seconds, "e")
    arrive(warehouse, [late])
    account = sessionized(warehouse, config)
    assert not was_rebuilt_wholly(account), account.remarks
    expected = reference_sessions([*events, *others, late], config)
    assert found_sessions(warehouse.read(SESSIONS)) == expected


def test_a_late_event_joins_a_session_that_began_in_the_month_before(
    evening: tuple[Warehouse, list[LoggedEvent]],
) -> None:
    warehouse, events = evening
    late = event("t", 630, "t630")
    assert (months_of("t", events), late.at.month) == ([(3, 4)], 4)
    arrive(warehouse, [late])
    account = sessionized(warehouse, settings())
    assert (account.rows_in, account.rows_out) == ({"new_events": 1}, {"sessions rebuilt": 1})
    assert found_sessions(warehouse.read(SESSIONS)) == reference_sessions([*events, late], settings())


def test_a_late_event_moves_a_session_to_the_month_before(evening: tuple[Warehouse, list[LoggedEvent]]) -> None:
    warehouse, events = evening
    late = event("m", 590, "m590")
    assert (months_of("m", events), months_of("m", [*events, late])) == ([(4, 4)], [(3, 4)])
    arrive(warehouse, [late])
    account = sessionized(warehouse, settings())
    assert (account.rows_in, account.rows_out) == ({"new_events": 1}, {"sessions rebuilt": 1})
    assert account.remarks[0].startswith("2 parts of the table rewritten")
    assert found_sessions(warehouse.read(SESSIONS)) == reference_sessions([*events, late], settings())


def test_no_session_is_read_of_a_month_that_no_new_event_can_reach(
    evening: tuple[Warehouse, list[LoggedEvent]],
) -> None:
    warehouse, events = evening
    shutil.rmtree(Path(warehouse.path(SESSIONS)) / "started_month=2025-03-01")
    days_later = event("u", 3 * 86_400, "f")
    arrive(warehouse, [days_later])
    account = sessionized(warehouse, settings())
    assert not was_rebuilt_wholly(account), account.remarks
    of_april = {row for row in reference_sessions([*events, days_later], settings()) if row[3].month == 4}
    assert found_sessions(warehouse.read(SESSIONS).where("started_month = '2025-04-01'")) == of_april


def test_joining_files_of_events_before_or_after_a_run_makes_none_of_them_new(
    evening: tuple[Warehouse, list[LoggedEvent]],
) -> None:
    warehouse, events = evening
    late = [event("u", 35, "c"), event("u", 40, "cc"), event("v1", 20, "w"), event("w", 0, "new")]
    for one in late[:3]:
        arrive(warehouse, [one])
    maintained = Account("maintain")
    maintain(warehouse, settings(), maintained)
    assert any(remark.startswith("events: ") and "files joined" in remark for remark in maintained.remarks)
    arrive(warehouse, late[3:])
    account = sessionized(warehouse, settings())
    assert account.rows_in == {"new_events": 4}, account.remarks
    (remark,) = account.remarks
    assert "parts of the table rewritten" in remark
    assert found_sessions(warehouse.read(SESSIONS)) == reference_sessions([*events, *late], settings())
    DeltaTable.forPath(warehouse.spark, warehouse.path(EVENTS)).optimize().executeCompaction()
    assert "already" in sessionized(warehouse, settings()).nothing_to_do


def test_a_second_run_after_late_events_has_nothing_to_do(evening: tuple[Warehouse, list[LoggedEvent]]) -> None:
    warehouse, _ = evening
    arrive(warehouse, [event("u", 35, "c")])
    sessionized(warehouse, settings())
    version = warehouse.version(SESSIONS)
    assert sessionized(warehouse, settings()).nothing_to_do
    assert warehouse.version(SESSIONS) == version


def test_an_update_that_dies_before_its_commit_leaves_the_old_sessions_and_is_made_up_for_by_the_next_run(
    evening: tuple[Warehouse, list[LoggedEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse, events = evening
    before = found_sessions(warehouse.read(SESSIONS))
    late = event("u", 35, "c")
    arrive(warehouse, [late])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Warehouse, "replace_where", die)
        with pytest.raises(KeyboardInterrupt):
            sessionized(warehouse, settings())
    assert found_sessions(warehouse.read(SESSIONS)) == before
    assert not was_rebuilt_wholly(sessionized(warehouse, settings()))
    expected = reference_sessions([*events, late], settings())
    assert found_sessions(warehouse.read(SESSIONS)) == expected


def remove_user(warehouse: Warehouse) -> None:
    warehouse.delete(EVENTS, F.col("user_id") == "v0")


def lose_the_log(warehouse: Warehouse) -> None:
    """As Delta's own cleaning does: of the commits before a checkpoint."""
    deltalake.DeltaTable(warehouse.path(EVENTS)).create_checkpoint()
    (Path(warehouse.path(EVENTS)) / "_delta_log" / f"{warehouse.version(EVENTS) - 1:020d}.json").unlink()


def lose_a_file(warehouse: Warehouse) -> None:
    path = warehouse.path(EVENTS)
    DeltaTable.forPath(warehouse.spark, path).optimize().executeCompaction()
    assert remove_old_files(warehouse.spark, path, 0, ())


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(remove_user, "cannot be told"), (lose_the_log, "cannot be told"), (lose_a_file, "are gone")],
    ids=["rows removed", "log gone", "files gone"],
)
def test_where_the_added_events_cannot_be_told_all_sessions_are_rebuilt(
    evening: tuple[Warehouse, list[LoggedEvent]], trouble: Callable[[Warehouse], None], told: str
) -> None:
    warehouse, events = evening
    late = [event("u", 35, "c"), event("u", 40, "cc")]
    for one in late:
        arrive(warehouse, [one])
    trouble(warehouse)
    account = sessionized(warehouse, settings())
    assert was_rebuilt_wholly(account)
    assert any(told in remark for remark in account.remarks)
    kept = [e for e in [*events, *late] if trouble is not remove_user or e.user_id != "v0"]
    assert found_sessions(warehouse.read(SESSIONS)) == reference_sessions(kept, settings())


def test_events_made_anew_are_seen_though_there_are_as_many(evening: tuple[Warehouse, list[LoggedEvent]]) -> None:
    warehouse, events = evening
    shutil.rmtree(warehouse.path(EVENTS))
    others = [event("w", minute, f"e{minute}") for minute in range(len(events))]
    arrive(warehouse, others)
    account = sessionized(warehouse, settings())
    assert was_rebuilt_wholly(account)
    assert found_sessions(warehouse.read(SESSIONS)) == reference_sessions(others, settings())


def test_other_settings_rebuild_all_sessions(evening: tuple[Warehouse, list[LoggedEvent]]) -> None:
    warehouse, events = evening
    account = sessionized(warehouse, settings(max_events=1))
    assert was_rebuilt_wholly(account)
    assert warehouse.read(SESSIONS).count() == len(events)


def test_a_table_of_an_earlier_layout_is_rebuilt_in_todays_with_its_comments(
    evening: tuple[Warehouse, list[LoggedEvent]],
) -> None:
    warehouse, events = evening
    old = warehouse.read(SESSIONS).drop("session_key", "started_month").localCheckpoint()
    shutil.rmtree(warehouse.path(SESSIONS))
    old.write.format("delta").partitionBy("user_bucket").option("userMetadata", '{"events": 0}').save(
        warehouse.path(SESSIONS)
    )
    sessionized(warehouse, settings())
    now = warehouse.read(SESSIONS)
    assert found_sessions(now) == reference_sessions(events, settings())
    comments = {field.name: field.metadata.get("comment") for field in now.schema.fields}
    assert comments == {field.name: field.metadata["comment"] for field in SESSIONS.schema.fields}


def test_a_session_ends_at_the_zones_midnight_also_where_the_clock_changes(warehouse: Warehouse) -> None:
    # In London midnight is 00:00 UTC on 30 March 2025 and, an hour put forward, 23:00 UTC on that day.
    spans = {"30th": datetime(2025, 3, 29, 23, 59, 50), "31st": datetime(2025, 3, 30, 22, 59, 50)}
    events = [
        LoggedEvent(f"{user}{place}", user, start + timedelta(seconds=10 * place))
        for user, start in spans.items()
        for place in range(3)
    ]
    arrive(warehouse, events)
    sessionized(warehouse, settings(day_cut="Europe/London"))
    rows = warehouse.read(SESSIONS).collect()
    assert sorted(row["item_ids"] for row in rows) == [["30th0"], ["30th1", "30th2"], ["31st0"], ["31st1", "31st2"]]


def test_a_day_cut_in_an_unknown_zone_is_refused_in_one_line(evening: tuple[Warehouse, list[LoggedEvent]]) -> None:
    warehouse, _ = evening
    with pytest.raises(UsageError, match=r"sessionize.day_cut is 'Mars/Base', which is no time zone") as refused:
        sessionized(warehouse, settings(day_cut="Mars/Base"))
    assert "\n" not in str(refused.value)
