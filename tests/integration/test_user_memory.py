"""Scoring from what was kept the night before: any split of a history into nights gives what one replay gives."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENT_TYPES, OUTCOMES, PREDICTIONS, SESSIONS, USER_MEMORY, VOCABULARY
from llm_spark.tables.warehouse import Warehouse, sql
from llm_spark.transforms.sessions import user_bucket
from tests.pipelines.models import SPLITS, model, promote_in_turn
from tests.session_rows import session_row, sessions_frame

NUM_ITEMS, NUM_BUCKETS, GAP = 20, 2, timedelta(minutes=30)
START = datetime(2026, 3, 30)  # the nights cross the end of a month
Events = dict[str, dict[float, int]]
"""Of each user the item at each hour since START."""


def sessions_of(spark: SparkSession, events: Events) -> list[tuple]:
    """Rows of the sessions table: a pause of more than half an hour opens a new one."""
    rows = []
    for user, items in events.items():
        times = {START + timedelta(hours=hour): hour for hour in sorted(items)}
        stays: list[list[datetime]] = []
        for time in times:
            if stays and time - stays[-1][-1] <= GAP:
                stays[-1].append(time)
            else:
                stays.append([time])
        for stay in stays:
            named = [f"item {items[times[time]]}" for time in stay]
            values = [None if items[times[time]] % 3 == 0 else float(items[times[time]]) for time in stay]
            name = f"{user} from {stay[0]:%m-%d %H:%M}"
            rows.append(session_row(name, user, stay, named, ["view"] * len(stay), values))
    return rows


@dataclass
class Shop:
    """A warehouse with a champion, whose sessions are written as sessionize writes them: the parts that changed."""

    warehouse: Warehouse
    settings: list[str]
    accounts: list[Account] = field(default_factory=list)

    @classmethod
    def at(cls, spark: SparkSession, folder: Path, *overrides: str) -> Shop:
        bounds = (
            f"sessionize.num_buckets={NUM_BUCKETS}",
            "sequences.max_tokens=6",
            "sequences.burn_in_tokens=2",
            "score.k=4",
            "score.fallback_days=0",
        )
        shop = cls(Warehouse(spark, str(folder)), [*bounds, *overrides])
        promote(shop.warehouse, "m1", seed=0)
        item = spark.createDataFrame([(2 + i, f"item {i}") for i in range(NUM_ITEMS)], "token int, item_id string")
        kind = spark.createDataFrame([(2, "view")], "token int, event_type string")
        nothing = "CAST(NULL AS BIGINT) AS num_events", "CAST(NULL AS TIMESTAMP) AS first_seen_at"
        shop.warehouse.replace(VOCABULARY, item.selectExpr("*", *nothing).coalesce(1), {})
        shop.warehouse.replace(EVENT_TYPES, kind.selectExpr("*", *nothing).coalesce(1), {})
        return shop

    def hold(self, events: Events) -> None:
        spark = self.warehouse.spark
        frame = sessions_frame(spark, sessions_of(spark, events))
        new = frame.withColumn("user_bucket", user_bucket(NUM_BUCKETS)).coalesce(1).persist()
        if not self.warehouse.exists(SESSIONS):
            self.warehouse.replace(SESSIONS, new, {"night": 0})
        else:
            old = self.warehouse.read(SESSIONS)
            changed = new.exceptAll(old).unionByName(old.exceptAll(new))
            parts = {(row[0], row[1]) for row in changed.select("started_month", "user_bucket").collect()}
            named = [f"started_month = DATE'{month}' AND user_bucket = {bucket}" for month, bucket in sorted(parts)]
            if named:
                predicate = " OR ".join(f"({part})" for part in named)
                self.warehouse.replace_where(SESSIONS, new.where(predicate), predicate, {"parts": len(parts)})
        new.unpersist()

    def score(self, day: int, *overrides: str) -> Account:
        as_of = (START + timedelta(days=day)).date()
        place = (f"warehouse={self.warehouse.root}", f"as_of={as_of}")
        config = settings.load(None, [*self.settings, *place, *overrides])
        account = run_stage("score", self.warehouse, config)
        self.accounts.append(account)
        return account

    def current(self) -> dict[tuple[str, int], Any]:
        rows = sql(self.warehouse, "SELECT * FROM predictions_current").collect()
        return {(row["user_id"], row["rank"]): row for row in rows}

    def outcomes(self, day: int) -> dict[tuple[str, str], Any]:
        rows = self.warehouse.read(OUTCOMES).where(F.col("as_of_date") == F.lit((START + timedelta(days=day)).date()))
        return {(row["user_id"], row["outcome"]): row for row in rows.collect()}

    def memory(self) -> dict[str, Any]:
        return {row["user_id"]: row.asDict(True) for row in self.warehouse.read(USER_MEMORY).collect()}


def promote(warehouse: Warehouse, model_id: str, seed: int) -> None:
    torch.manual_seed(seed)
    sizes = {"embedding_size": 5, "hidden_size": 6, "dense_size": 7, "memory_size": 4, "use_time_gaps": True}
    outcomes = [
        OutcomeConfig("returns", event_types=["view"], within_days=3),
        OutcomeConfig("spends", within_days=9, kind="amount"),
    ]
    network = NextEventModel(ModelConfig(outcomes=outcomes, **sizes), 2 + NUM_ITEMS, 3, 8.0, 5.0)
    with torch.no_grad():
        network.head.weight.mul_(5)
    path = warehouse.model_path(model_id)
    tables = {
        "splits": SPLITS,
        "table_versions": {"sequences": 1, "vocabulary": 0},
        "values": {"missing": "forward", "bounds": {}},
    }
    save_manifest(path, save_content(path, network, {}, tables))
    promote_in_turn(warehouse, model(model_id, day=seed))


def assert_same_tables(left: Shop, right: Shop) -> None:
    found, expected = left.current(), right.current()
    assert found.keys() == expected.keys()
    for key, row in found.items():
        other = expected[key]
        assert (row["item_id"], row["model_id"]) == (other["item_id"], other["model_id"])
        for name in ("score", "probability", "memory_weight"):
            assert (row[name] is None) == (other[name] is None)
            assert row[name] is None or math.isclose(row[name], other[name], rel_tol=1e-5, abs_tol=1e-5)
        assert (row["reasons"] is None) == (other["reasons"] is None)
        for one, another in itertools.zip_longest(row["reasons"] or [], other["reasons"] or []):
            assert one["item_id"] == another["item_id"]
            assert one["weight"] == pytest.approx(another["weight"], abs=1e-5)
    kept, replayed = left.memory(), right.memory()
    assert kept.keys() == replayed.keys()
    for user, state in kept.items():
        other = replayed[user]
        vectors = (np.frombuffer(each.pop("memory"), "<f4") for each in (state, other))
        np.testing.assert_allclose(*vectors, atol=1e-5)
        for each in (state, other):
            # Whoever has had no news was last written on an earlier night.
            del each["as_of_date"], each["run_id"]
        pasts = (state.pop("past"), other.pop("past"))
        assert state == other
        assert (pasts[0] is None) == (pasts[1] is None)
        if pasts[0]:
            assert pasts[0].pop("value_sum") == pytest.approx(pasts[1].pop("value_sum"))
            assert pasts[0] == pasts[1]


def random_events(seed: int) -> Events:
    rng = np.random.default_rng(seed)
    events: Events = {}
    for user in range(14):
        hours = rng.choice(np.arange(0, 96, 0.25), size=int(rng.integers(1, 14)), replace=False)
        events[f"random {user}"] = {float(hour): int(rng.integers(NUM_ITEMS)) for hour in hours}
    return events


def until(events: Events, hour: float) -> Events:
    """What had come by then."""
    known = {user: {h: item for h, item in items.items() if h < hour} for user, items in events.items()}
    return {user: items for user, items in known.items() if items}


LONG_STAY = {15.0: 3, 15.25: 4, 15.5: 5, 15.75: 6, 17.0: 7}
# By hand, hours since START: what each of these does between the first night (hour 24) and the later ones.
TOLD: list[Events] = [
    {
        "stays": {1.0: 1, 5.0: 2},
        "goes on in the last session": {2.0: 3, 20.0: 4},
        "is rewritten early": {1.0: 5, 3.0: 6, 9.0: 7, 20.0: 8},
        "is joined": {1.0: 2, 10.0: 9, 11.0: 10, **LONG_STAY},
        "leaves": {4.0: 11, 22.0: 12},
        "closes": {1.0: 4, 23.75: 13},
    },
    {
        "stays": {1.0: 1, 5.0: 2},
        "goes on in the last session": {2.0: 3, 20.0: 4, 20.25: 5},
        "is rewritten early": {1.0: 5, 1.25: 19, 3.0: 6, 9.0: 7, 20.0: 8},
        "is joined": {1.0: 2, 10.0: 9, 10.5: 3, 11.0: 10, **LONG_STAY},
        "closes": {1.0: 4, 23.75: 13},
        "comes": {30.0: 14, 30.25: 15},
    },
    {
        "stays": {1.0: 1, 5.0: 2},
        "goes on in the last session": {2.0: 3, 20.0: 4, 20.25: 5, 50.0: 6, 60.0: 9},
        "is rewritten early": {1.0: 5, 1.25: 19, 3.0: 6, 9.0: 7, 20.0: 8},
        "is joined": {1.0: 2, 10.0: 9, 10.5: 3, 11.0: 10, **LONG_STAY, 70.0: 1},
        "leaves": {71.0: 12},
        "closes": {1.0: 4, 23.75: 13},
        "comes": {30.0: 14},
    },
]


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Three nights, each with reasons: so that the window is several sessions."""
    shop = Shop.at(spark, tmp_path_factory.mktemp("nights"), "score.reasons=2", "score.exclude=seen")
    random = random_events(1)
    for night, told in enumerate(TOLD):
        # On the first night some events of the next day lie in the table already: its end cuts them off.
        shop.hold({**until(random, 36 if night == 0 else 24 * (night + 1)), **told})
        shop.score(night)
    return shop


@pytest.fixture(scope="module")
def replayed(spark: SparkSession, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One night that replays all that the three have seen, in other partitions and batches."""
    other = Shop.at(spark, tmp_path_factory.mktemp("replay"), "score.reasons=2", "score.exclude=seen")
    other.hold({**until(random_events(1), 72), **TOLD[-1]})
    num_partitions = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    other.score(2, "score.batch_rows=3")
    spark.conf.set("spark.sql.shuffle.partitions", num_partitions or "2")
    return other


def test_outcomes_of_all_users_those_without_news_included_are_those_of_one_replay(shop: Shop, replayed: Shop) -> None:
    found, expected = shop.outcomes(2), replayed.outcomes(2)
    assert found.keys() == expected.keys()
    assert {user for user, _ in found} == set(shop.memory())
    for key, row in found.items():
        for name in ("probability", "value"):
            assert (row[name] is None) == (expected[key][name] is None)
            assert row[name] is None or math.isclose(row[name], expected[key][name], rel_tol=1e-4, abs_tol=1e-5)


def test_three_nights_with_late_events_give_what_one_replay_gives(shop: Shop, replayed: Shop) -> None:
    assert_same_tables(shop, replayed)


def test_the_account_says_who_was_advanced_replayed_and_kept(shop: Shop) -> None:
    first, second = shop.accounts[:2]
    assert first.rows_out["users_replayed"] == first.rows_out["users"]
    assert any("nothing is kept of any user yet" in remark for remark in first.remarks)
    # Replayed are the one rewritten early and the one joined; the one who left is withdrawn.
    assert second.rows_out["users_withdrawn"] == 1
    assert second.rows_out["users_replayed"] == 2
    assert second.rows_out["users_advanced"] >= 3
    assert second.rows_out["users_kept"] >= 1
    third, counted = shop.accounts[2], ("users_advanced", "users_replayed", "users_kept")
    assert sum(third.rows_out[name] for name in counted) == len(shop.memory())
    of_third = [state for state in shop.memory().values() if state["run_id"] == third.run_id]
    assert third.rows_out["users_advanced"] + third.rows_out["users_replayed"] == len(of_third)
    assert any("a Python worker of the scoring kernel took" in remark for remark in second.remarks)


def test_a_user_without_news_keeps_the_predictions_of_the_night_that_wrote_them(shop: Shop) -> None:
    days = {key[0]: row["as_of_date"] for key, row in shop.current().items()}
    assert days["stays"] == START.date()
    assert days["closes"] == (START + timedelta(days=1)).date()
    assert days["leaves"] == (START + timedelta(days=2)).date()


def test_whoever_has_no_session_any_more_is_withdrawn_until_he_comes_back(shop: Shop) -> None:
    rows = [row for row in shop.warehouse.read(PREDICTIONS).collect() if row["user_id"] == "leaves"]
    by_day = {row["as_of_date"].day: (row["source"], row["item_id"] is None) for row in rows}
    assert by_day == {30: ("model", False), 31: ("withdrawn", True), 1: ("model", False)}


def test_again_as_of_the_same_day_there_is_nothing_to_do(shop: Shop) -> None:
    assert shop.score(2).nothing_to_do


@pytest.fixture
def copied(shop: Shop, tmp_path: Path) -> Shop:
    shutil.copytree(shop.warehouse.root, tmp_path / "copy")
    return Shop(Warehouse(shop.warehouse.spark, str(tmp_path / "copy")), shop.settings)


def test_a_run_killed_between_the_tables_is_done_again_from_the_same_state(
    copied: Shop, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = {**until(random_events(1), 90), **TOLD[-1], "stays": {1.0: 1, 5.0: 2, 80.0: 7}}
    del later["comes"]
    killed_at: list[str] = []
    write: Callable[..., None] = Warehouse.replace_where

    def killed(self: Warehouse, table: Any, *arguments: Any) -> None:
        if table is USER_MEMORY and not killed_at:
            killed_at.append(table.name)
            raise KeyboardInterrupt
        write(self, table, *arguments)

    copied.hold(later)
    monkeypatch.setattr(Warehouse, "replace_where", killed)
    with pytest.raises(KeyboardInterrupt):
        copied.score(3)
    # By the time of the next run one of the changes is taken back, on the same day.
    later["stays"] = TOLD[-1]["stays"]
    copied.hold(later)
    copied.score(3)
    assert killed_at == ["user_memory"]
    replay = Shop.at(spark, tmp_path / "replay", "score.reasons=2", "score.exclude=seen")
    replay.hold(later)
    replay.score(3)
    assert_same_tables(copied, replay)
    assert copied.score(3).nothing_to_do


def test_where_the_old_sessions_are_vacuumed_away_all_histories_are_replayed(copied: Shop, replayed: Shop) -> None:
    copied.hold({**until(random_events(1), 72), **TOLD[-1], "stays": {1.0: 1}})
    copied.hold({**until(random_events(1), 72), **TOLD[-1]})
    current = {Path(file).name for file in copied.warehouse.read(SESSIONS).inputFiles()}
    for file in Path(copied.warehouse.path(SESSIONS)).rglob("part-*.parquet"):
        if file.name not in current:
            file.unlink()
    account = copied.score(2)
    assert any("cannot be told" in remark for remark in account.remarks)
    assert_same_tables(copied, replayed)


def test_an_earlier_day_gets_its_own_predictions_and_leaves_the_memory_and_what_is_served(copied: Shop) -> None:
    before, memory = copied.current(), copied.memory()
    account = copied.score(1, "score.k=2")
    assert any("stays as of 2026-04-01" in remark for remark in account.remarks)
    of_day = [row for row in copied.warehouse.read(PREDICTIONS).collect() if row["as_of_date"].day == 31]
    is_served = {user for user, state in memory.items() if state["as_of_date"].day == 31}
    assert {row["user_id"] for row in of_day if row["rank"] > 2} <= is_served
    assert {row["rank"] for row in of_day if row["user_id"] not in is_served} == {1, 2}
    # What is known today of the first two days: the one who left and came back was not there.
    assert {row["user_id"] for row in of_day} == set(until({**random_events(1), **TOLD[-1]}, 48)) | {"leaves"}
    assert copied.memory() == memory
    assert copied.current() == before
    assert copied.score(1, "score.k=2").nothing_to_do


def test_a_newly_promoted_model_replays_all_and_shares_no_memory_with_the_one_before(copied: Shop) -> None:
    promote(copied.warehouse, "m2", seed=1)
    account = copied.score(2)
    assert any("m2 is champion" in remark for remark in account.remarks)
    assert {row["model_id"] for row in copied.memory().values()} == {"m2"}
    assert {row["model_id"] for row in copied.current().values()} == {"m2"}
    assert account.rows_out["users_replayed"] == len(copied.memory())
