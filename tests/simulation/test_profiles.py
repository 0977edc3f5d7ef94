"""The logs of each trade as an independent reader of that trade sees them, and what a person of the trade would expect."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from llm_spark.simulation import PRESETS, LogsWritten, Oracle, Process, SimulationConfig, preset, write_logs
from llm_spark.simulation.finance import FinanceProfile
from llm_spark.simulation.health import HealthProfile
from llm_spark.simulation.logistics import LogisticsProfile
from llm_spark.simulation.profile import Mark
from llm_spark.simulation.retail import RetailProfile
from tests.simulation.trade_exports import Read, lines_of, understood

TRADES = ["finance", "logistics", "health"]
SMALL = {
    "num_users": 150,
    "num_items": 240,
    "items_per_intent": 60,
    "num_days": 20,
    "num_files_per_day": 2,
    "mean_sessions_per_user": 3.0,
    "broken_rate": 0.02,
    "missing_user_rate": 0.02,
    "missing_item_rate": 0.02,
    "missing_time_rate": 0.02,
    "bad_time_rate": 0.02,
}


@dataclass(frozen=True)
class Logs:
    trade: str
    config: SimulationConfig
    folder: Path
    account: LogsWritten
    kept: list[tuple[Path, Read]]
    dropped: Counter

    def events(self) -> list[Read]:
        return [read for _, read in self.kept]

    def sessions(self) -> dict[str, list[Read]]:
        of_session = defaultdict(list)
        for read in sorted(self.events(), key=lambda read: read.time):
            of_session[read.session].append(read)
        return of_session


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = {}

    def write(trade: str) -> Logs:
        if trade not in made:
            config = replace(preset(trade), **SMALL)
            folder = tmp_path_factory.mktemp(trade) / "logs"
            account = write_logs(config, folder)
            seen, kept, dropped = set(), [], Counter()
            for path in [folder / file for file in account.files]:
                for line, read in understood(trade, path):
                    if line in seen:
                        dropped["duplicates"] += 1
                    elif isinstance(read, str):
                        dropped[read] += 1
                    elif read.is_test:
                        dropped["bot"] += 1
                    else:
                        kept.append((path, read))
                    seen.add(line)
            made[trade] = Logs(trade, config, folder, account, kept, dropped)
        return made[trade]

    return write


@pytest.mark.parametrize("trade", TRADES)
def test_a_reader_of_the_trade_finds_exactly_the_events_that_were_simulated(written, trade):
    logs = written(trade)
    process = Process.draw(logs.config)
    events = process.simulate()
    users, items, types = process.user_ids, process.item_ids, np.array(logs.config.profile.event_types)
    expected = zip(
        (users[user] for user in events.user_N),
        (items[item] for item in events.item_N),
        events.time_N.tolist(),
        types[events.event_type_N].tolist(),
        (None if np.isnan(value) else value for value in events.value_N.tolist()),
        strict=True,
    )
    found = [(read.user, read.item, read.time, read.kind, read.value) for read in logs.events()]
    assert Counter(found) == Counter(expected)


@pytest.mark.parametrize("trade", TRADES)
def test_the_account_counts_every_planted_line_of_the_trade(written, trade):
    logs = written(trade)
    late = 0
    start = datetime.fromisoformat(logs.config.start_date).toordinal()
    for path, read in logs.kept:
        file_day = datetime.fromisoformat(re.search(r"\d{4}-\d\d-\d\d", path.name)[0]).toordinal()
        event_day = datetime.fromtimestamp(read.time, ZoneInfo("UTC")).toordinal()
        late += event_day < file_day
        assert start <= event_day <= file_day
    assert dict(logs.dropped) | {"late": late} == logs.account.num_planted
    assert min(logs.account.num_planted.values()) > 0
    assert sum(logs.dropped.values()) + len(logs.kept) == logs.account.num_lines


@pytest.mark.parametrize("trade", ["logistics", "health"])
def test_the_session_ids_of_the_log_are_the_simulated_sessions_numbered_by_their_start(written, trade):
    logs = written(trade)
    sessions = logs.sessions()
    assert len(sessions) == logs.account.num_sessions
    assert all(len({read.user for read in reads}) == 1 for reads in sessions.values())
    events = Process.draw(logs.config).simulate()
    lengths = np.bincount(events.session_N)
    assert Counter(len(reads) for reads in sessions.values()) == Counter(lengths.tolist())
    starts = [sessions[session][0].time for session in sorted(sessions)]
    assert starts == sorted(starts)


@pytest.mark.parametrize("trade", TRADES)
def test_the_same_settings_give_the_same_bytes_of_the_trade(tmp_path, trade):
    config = replace(preset(trade), num_users=20, num_days=4)
    for folder, seed in [("one", 5), ("two", 5), ("other", 6)]:
        write_logs(replace(config, seed=seed), tmp_path / folder)
    one, two, other = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("one", "two", "other")
    )
    assert one == two
    assert one != other


@pytest.mark.parametrize("trade", TRADES)
def test_the_oracle_knows_the_trades_items_and_gains_by_long_memory(trade):
    process = Process.draw(replace(preset(trade), num_users=40))
    result = Oracle(process).best_recall(process.histories(process.simulate()), 10)
    assert result.num_unknown_targets == 0
    assert result.recall > result.session_only_recall > result.popularity_recall


@pytest.mark.parametrize("trade", PRESETS)
def test_ids_stay_apart_where_there_are_more_groups_and_items_than_names(trade):
    config = replace(preset(trade), num_users=20_000, num_items=9000, num_intents=11, items_per_intent=900)
    process = Process.draw(config)
    assert len(set(process.item_ids)) == 9000
    assert len({*process.user_ids, process.bot_user_id}) == 20_001


def passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: from the right, every second digit doubled, its digits summed."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number // 10 + number % 10
    return total % 10 == 0


def test_no_card_token_could_be_a_card_number():
    assert passes_luhn("79927398713")  # the usual example
    assert passes_luhn("4111111111111111")
    tokens = FinanceProfile().user_ids(3000)
    assert all(re.fullmatch(r"9999\d{12}", token) for token in tokens)
    assert not any(passes_luhn(token) for token in tokens)


def test_a_reversal_follows_the_payment_that_it_takes_back():
    config = replace(preset("finance"), num_users=400)
    events = Process.draw(config).simulate()
    rows = list(
        zip(
            events.session_N.tolist(),
            events.item_N.tolist(),
            events.event_type_N.tolist(),
            events.value_N.tolist(),
            strict=True,
        )
    )
    reversals = [at for at, row in enumerate(rows) if row[2] == 2]
    assert len(reversals) > 20
    for at in reversals:
        session, item, _, amount = rows[at]
        assert rows[at - 1] == (session, item, 0, amount)


def test_a_reversal_carries_no_amount_where_its_type_carries_none():
    profile = FinanceProfile(valued_event_types=["AUTHORISATION"])
    events = Process.draw(replace(preset("finance"), num_users=200, profile=profile)).simulate()
    assert set(events.event_type_N) == {0, 1, 2}
    np.testing.assert_array_equal(~np.isnan(events.value_N), events.event_type_N == 0)


def test_amounts_have_a_pareto_tail():
    # With every amount in the tail and no other spread, amount / median is Pareto: its logarithm's mean is 1 / exponent.
    profile = FinanceProfile(tail_share=1.0, tail_exponent=1.5, value_event_spread=0.0, reversal_share=0.0)
    process = Process.draw(replace(preset("finance"), num_users=1000, profile=profile))
    events = process.simulate()
    logarithms = np.log(events.value_N / process.price_V[events.item_N])
    standard_error = (1 / 1.5) / np.sqrt(len(events))
    assert abs(logarithms.mean() - 1 / 1.5) < 4 * standard_error + 0.001  # amounts are in whole cents


def test_a_payment_has_its_merchants_clock_and_currency():
    process = Process.draw(preset("finance"))
    last_of_winter = 1_743_296_399  # 2025-03-30 00:59:59 UTC
    items = {item_id.rsplit(" ", 1)[1]: item for item, item_id in enumerate(process.item_ids)}
    marks = [
        Mark(last_of_winter + second, 0, items[city], 0, 100.0, 0)
        for city in ("HAMBURG", "LONDON", "TOKYO")
        for second in (0, 1)
    ]
    records = process.config.profile.records(process, marks)
    assert [(record["LOCAL_TIME"], record["AMOUNT"], record["CURRENCY"]) for record in records] == [
        ("30.03.2025 01:59:59 +01:00", "100,00", "EUR"),
        ("30.03.2025 03:00:00 +02:00", "100,00", "EUR"),
        ("30.03.2025 00:59:59 +00:00", "84,00", "GBP"),
        ("30.03.2025 02:00:00 +01:00", "84,00", "GBP"),
        ("30.03.2025 09:59:59 +09:00", "16200", "JPY"),
        ("30.03.2025 10:00:00 +09:00", "16200", "JPY"),
    ]
    assert {record["BILLING_EUR"] for record in records} == {"100,00"}


def test_a_pause_of_ten_hours_recovers_the_outings_exactly():
    events = Process.draw(replace(preset("finance"), num_users=400)).simulate()
    new_user = np.diff(events.user_N, prepend=-1) != 0
    recovered = np.cumsum(new_user | (np.diff(events.time_N, prepend=0) > 36_000)) - 1
    np.testing.assert_array_equal(recovered, events.session_N)


def test_a_shipment_is_picked_up_first_and_delivered_last(written):
    sessions = written("logistics").sessions()
    ends = Counter()
    for reads in sessions.values():
        first, *middle = [read.kind for read in reads]
        assert first == "pickup"
        if middle:
            *between, last = middle
            ends[last] += 1
            assert between[-1:] in ([], ["out_for_delivery"])
            assert set(between[:-1]) <= {"in_transit", "exception"}
    assert set(ends) == {"delivered", "exception"}
    assert ends["delivered"] > 5 * ends["exception"]


def test_a_shipment_weighs_the_same_on_every_scale(written):
    weighed = [
        [read.value for read in reads if read.value is not None] for reads in written("logistics").sessions().values()
    ]
    several = [weights for weights in weighed if len(weights) > 1]
    assert several
    # Scales err by 0.4 %, weights are rounded to 10 g.
    assert all(max(weights) - min(weights) < 0.05 * max(weights) + 0.02 for weights in several)
    medians = [np.median(weights) for weights in several]
    assert max(medians) > 5 * min(medians), "shipments differ"


def test_only_scans_by_hand_come_late(written):
    logs = written("logistics")
    late = {
        read.kind
        for path, read in logs.kept
        if datetime.fromtimestamp(read.time, ZoneInfo("UTC")).date().isoformat()
        < re.search(r"\d{4}-\d\d-\d\d", path.name)[0]
    }
    assert late == {"pickup", "out_for_delivery", "delivered"}


SHAPES = {
    "diagnosis": r"[A-Z]\d\d\.\d",
    "procedure": r"5-\d{3}\.\d",
    "prescription": r"[A-Z]\d\dA[A-Z]\d\d",
    "lab": r"\d{4}-\d",
}


def test_a_code_has_the_shape_of_its_kind_and_only_tests_have_results(written):
    reads = written("health").events()
    assert {read.kind for read in reads} == set(SHAPES)
    for read in reads:
        assert re.fullmatch(SHAPES[read.kind], read.item), read
    assert {read.kind for read in reads if read.value is not None} == {"lab"}
    missing = [read.value is None for read in reads if read.kind == "lab"]
    standard_error = np.sqrt(0.15 * 0.85 / len(missing))
    assert abs(np.mean(missing) - 0.15) < 4 * standard_error


def test_the_bent_clock_keeps_days_and_order_and_is_dense_where_hours_are_busy():
    # Twelve hours of weight 1, twelve of weight 3: a quarter of the day's events fall before noon.
    profile = RetailProfile(hour_weights=[1.0] * 12 + [3.0] * 12, min_gap_seconds=2)
    hours = np.array([0, 3, 6, 15, 24 + 6]) * 3600
    assert (profile.bent_times(hours) / 3600).tolist() == [0, 6, 12, 18, 24 + 12]


@pytest.mark.parametrize(
    ("profile", "name", "value"),
    [
        (RetailProfile, "hour_weights", [1.0] * 23),
        (RetailProfile, "hour_weights", [0.0] + [1.0] * 23),
        (RetailProfile, "median_gap_seconds", 2000.0),
        (RetailProfile, "min_session_gap_seconds", 1200),
        (RetailProfile, "value_item_spread", -1.0),
        (RetailProfile, "value_log_median", float("nan")),
        (FinanceProfile, "min_session_gap_seconds", 5 * 3600),
        (FinanceProfile, "event_types", ["paid", "not paid"]),
        (FinanceProfile, "tail_exponent", 0.0),
        (FinanceProfile, "tail_share", 1.5),
        (LogisticsProfile, "delivered_share", -0.1),
        (HealthProfile, "missing_value_share", 1.1),
    ],
)
def test_an_impossible_setting_of_a_trade_is_refused_in_one_line(profile, name, value):
    with pytest.raises(ValueError, match=rf"^simulation\.profile\.{name}=.*$"):
        profile(**{name: value})


def test_a_trade_that_is_not_there_is_refused_naming_those_that_are():
    with pytest.raises(
        ValueError, match=r"^simulation\.profile='bank': choose one of retail, finance, logistics, health$"
    ):
        preset("bank")


def test_a_format_that_is_not_the_trades_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^fmt='csv': choose among jsonl$"):
        write_logs(preset("logistics"), tmp_path, "csv")


def test_no_file_of_a_trade_ends_a_line_within_a_field(written):
    # `ingest` reads one record a line.
    for trade in TRADES:
        logs = written(trade)
        num_lines = sum(len(lines_of(logs.folder / file)) for file in logs.account.files)
        assert num_lines == logs.account.num_lines + logs.account.num_header_lines
