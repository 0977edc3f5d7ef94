"""Logs that arrive over several nights, drawn at random: the tables equal those that are made of all events at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.config import Config
from llm_spark.pipelines import sequences
from llm_spark.pipelines.account import Account
from llm_spark.schemas import EVENT_TYPES, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from tests.integration.session_logs import (
    OLD_MONTH_ENDS,
    LoggedEvent,
    arrive,
    found_sessions,
    log_of_stages,
    num_begun_a_month_earlier,
    reference_sessions,
    sessionized,
    settings,
    users_late_by,
    users_told_by,
    was_rebuilt_wholly,
)
from tests.killing import table_rows

NO_LIMIT = 10**6


@dataclass(frozen=True)
class Nights:
    """A log that arrived night by night; each night's run and the sessions after it."""

    events: list[LoggedEvent]
    config: Config
    warehouse: Warehouse
    accounts: list[Account]
    found: list[set[tuple]]


def let_arrive(warehouse: Warehouse, events: list[LoggedEvent], config: Config) -> Nights:
    nights = Nights(events, config, warehouse, [], [])
    for night in range(1 + max(event.night for event in events)):
        arrive(warehouse, [event for event in events if event.night == night])
        nights.accounts.append(sessionized(warehouse, config))
        nights.found.append(found_sessions(warehouse.read(SESSIONS)))
    return nights


def check_that_the_rules_are_put_to_the_test(events: list[LoggedEvent], config: Config) -> None:
    """Late events lie in sessions that each of the rules has cut, move some to another month, and are months late; none is of the old month."""
    rules = config.sessionize
    if rules.day_cut is not None:
        assert len(users_told_by(events, config, day_cut=None)) >= 10
    if rules.max_events < NO_LIMIT:
        assert len(users_told_by(events, config, max_events=NO_LIMIT)) >= 10
    if rules.max_length_seconds < NO_LIMIT:
        assert len(users_told_by(events, config, max_length_seconds=NO_LIMIT)) >= 10
    assert num_begun_a_month_earlier(events, config) >= 5
    for delay in (timedelta(seconds=10), timedelta(days=30)):
        assert len(users_late_by(events, delay)) >= 20
    late = [event for event in events if event.night]
    assert min(event.at for event in late) >= OLD_MONTH_ENDS
    assert len({e.user_id for e in events if e.at < OLD_MONTH_ENDS} & {e.user_id for e in late}) >= 20
    assert {event.value is None for event in late} == {True, False}
    assert len({event.event_type for event in late}) > 1


def check(nights: Nights) -> None:
    check_that_the_rules_are_put_to_the_test(nights.events, nights.config)
    for night, (account, found) in enumerate(zip(nights.accounts, nights.found, strict=True)):
        assert was_rebuilt_wholly(account) == (night == 0), account.remarks
        arrived = [event for event in nights.events if event.night <= night]
        assert found == reference_sessions(arrived, nights.config)


@pytest.fixture
def warehouse(spark: SparkSession, tmp_path: Path) -> Warehouse:
    return Warehouse(spark, str(tmp_path / "warehouse"))


@pytest.fixture(scope="module")
def by_gap_and_day(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    events = log_of_stages(seed=0, num_users=150, num_nights=2)
    config = settings(day_cut="+05:30", max_length_seconds=60, max_events=5)
    return let_arrive(Warehouse(spark, str(tmp_path_factory.mktemp("nights") / "warehouse")), events, config)


def test_events_late_by_any_time_and_order_give_the_sessions_that_duckdb_makes_of_all_events(
    by_gap_and_day: Nights,
) -> None:
    """Down to the item, type, time and value of each event, over months' turns and midnights of a zone."""
    check(by_gap_and_day)


def test_late_events_of_sessions_by_key_give_the_sessions_that_duckdb_makes_of_all_events(warehouse: Warehouse) -> None:
    """Also where no key is given, over midnights of a zone whose clock changes."""
    events = log_of_stages(seed=0, num_users=150, num_nights=1)
    config = settings(by_key=True, day_cut="Europe/London", max_length_seconds=40, max_events=5)
    check(let_arrive(warehouse, events, config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "by_key", "day_cut", "max_length_seconds", "max_events"),
    [
        (0, False, None, 60, 5),
        (1, False, "-07:00", NO_LIMIT, 3),
        (2, True, "-07:00", 50, NO_LIMIT),
        (3, False, "Europe/London", 50, NO_LIMIT),
        (4, False, None, NO_LIMIT, NO_LIMIT),
        (5, True, "Europe/London", 60, 5),
        (6, False, "+05:30", NO_LIMIT, NO_LIMIT),
        (7, True, None, NO_LIMIT, 2),
    ],
)
def test_many_nights_of_late_events_give_the_sessions_that_duckdb_makes_of_all_events(
    warehouse: Warehouse, seed: int, by_key: bool, day_cut: str | None, max_length_seconds: int, max_events: int
) -> None:
    events = log_of_stages(seed, num_users=300, num_nights=5, late_share=0.3)
    config = settings(by_key, day_cut=day_cut, max_length_seconds=max_length_seconds, max_events=max_events)
    check(let_arrive(warehouse, events, config))


def test_sequences_after_late_events_are_those_of_a_log_that_was_there_at_once(
    by_gap_and_day: Nights, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The certificate measures these tables, and takes as long as they do.
    monkeypatch.setattr(sequences, "certify", lambda *_: None)
    late, config = by_gap_and_day.warehouse, by_gap_and_day.config
    assert len(users_late_by(by_gap_and_day.events, timedelta(days=30))) >= 20
    arrive(warehouse, by_gap_and_day.events)
    assert was_rebuilt_wholly(sessionized(warehouse, config))
    assert not was_rebuilt_wholly(by_gap_and_day.accounts[-1])
    found = []
    for each in (late, warehouse):
        sequences.sequences(each, config, Account("sequences"))
        found.append(table_rows(each, SEQUENCES, VOCABULARY, EVENT_TYPES))
    assert len(found[0]["sequences"]) > 150
    assert found[0] == found[1]
