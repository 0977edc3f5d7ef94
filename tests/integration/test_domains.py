"""Each shipped trade from simulated raw logs to tables, by its own settings in conf/: nothing in the code knows what an item is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES, PREDICTIONS, SEQUENCES, SESSIONS, VOCABULARY
from llm_spark.simulation import Events, LogsWritten, Process, SimulationConfig, preset, write_logs
from llm_spark.tables.warehouse import Warehouse

CONF = Path(__file__).parents[2] / "conf"
TRADES = ["finance", "logistics", "health"]
SMALL = {
    "num_users": 80,
    "num_items": 60,
    "num_tastes": 4,
    "num_intents": 3,
    "items_per_intent": 25,
    "num_days": 8,
    "mean_sessions_per_user": 3.0,
    "broken_rate": 0.01,
    "missing_user_rate": 0.01,
    "missing_item_rate": 0.01,
    "missing_time_rate": 0.01,
    "bad_time_rate": 0.01,
}
QUICK = [
    "model.embedding_size=8",
    "model.hidden_size=12",
    "model.dense_size=12",
    "model.memory_size=6",
    "train.num_epochs=1",
    "train.device=cpu",
    "gate.enabled=false",
    "sequences.min_item_count=1",
    "sessionize.num_buckets=2",
    # A few days of logs close no window of their outcomes, and no chance of one of few items is small.
    "model.outcomes=[]",
    "score.min_probability=0",
]


@dataclass(frozen=True)
class Trade:
    """A warehouse that the first three stages have run on, with what went into it."""

    simulation: SimulationConfig
    process: Process
    clean: Events
    logs: LogsWritten
    config: Config
    warehouse: Warehouse


@pytest.fixture(scope="module", params=TRADES)
def trade(request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Trade:
    folder = tmp_path_factory.mktemp(request.param)
    simulation = replace(preset(request.param), **SMALL)
    logs = write_logs(simulation, folder / "logs")
    places = [f"warehouse={folder / 'warehouse'}", f"ingest.paths=[{folder / 'logs'}]"]
    config = settings.load(CONF / f"{request.param}.yaml", [*places, *QUICK], ("ingest",))
    warehouse = Warehouse(spark, config.warehouse)
    for stage in ("ingest", "sessionize", "sequences"):
        run_stage(stage, warehouse, config)
    process = Process.draw(simulation)
    return Trade(simulation, process, process.simulate(), logs, config, warehouse)


def test_the_events_are_exactly_those_that_were_simulated(trade: Trade) -> None:
    profile, clean = trade.simulation.profile, trade.clean
    users, items = trade.process.user_ids, trade.process.item_ids
    expected = Counter(
        (users[user], items[item], time, profile.event_types[kind].lower(), None if np.isnan(value) else value)
        for user, item, time, kind, value in zip(
            clean.user_N.tolist(),
            clean.item_N.tolist(),
            clean.time_N.tolist(),
            clean.event_type_N.tolist(),
            clean.value_N.tolist(),
            strict=True,
        )
    )
    columns = ["user_id", "item_id", F.unix_seconds("event_time"), "event_type", "value"]
    found = Counter(tuple(row) for row in trade.warehouse.read(EVENTS).select(*columns).collect())
    assert found == expected
    assert len({kind for _, _, _, kind, _ in found}) == len(profile.event_types)


def test_every_planted_trouble_has_its_reason_and_every_line_is_accounted_for(trade: Trade) -> None:
    planted = trade.logs.num_planted
    assert min(planted.values()) > 0
    rejected = trade.warehouse.read(EVENTS_REJECTED).groupBy("reason").count().collect()
    assert {row["reason"]: row["count"] for row in rejected} == {
        "unparsable": planted["broken"],
        "filtered": planted["bot"],
        **{name: planted[name] for name in ("missing_user", "missing_item", "missing_time", "bad_time")},
    }
    names = ("num_records", "num_accepted", "num_rejected", "num_duplicates")
    counts = trade.warehouse.read(INGESTED_FILES).agg(*[F.sum(name).alias(name) for name in names]).first()
    assert counts is not None
    assert counts["num_records"] == trade.logs.num_lines
    assert counts["num_accepted"] == trade.logs.num_clean_events
    assert counts["num_duplicates"] == planted["duplicates"]


def test_the_sessions_are_the_simulated_ones_by_id_or_by_pause(trade: Trade) -> None:
    items, values, clean = trade.process.item_ids, trade.clean.value_N, trade.clean
    begins = np.flatnonzero(np.diff(clean.session_N, prepend=-1, append=clean.session_N[-1] + 1))
    expected = Counter(
        (
            trade.process.user_ids[clean.user_N[begin]],
            tuple(items[item] for item in clean.item_N[begin:end]),
            tuple(None if np.isnan(value) else value for value in values[begin:end].tolist()),
        )
        for begin, end in pairwise(begins.tolist())
    )
    rows = trade.warehouse.read(SESSIONS).select("user_id", "item_ids", "event_values").collect()
    assert Counter((row["user_id"], tuple(row["item_ids"]), tuple(row["event_values"])) for row in rows) == expected
    keys = trade.warehouse.read(EVENTS).select("session_key").distinct().collect()
    num_keys = trade.logs.num_sessions if trade.simulation.profile.has_session_ids else 1
    assert len(keys) == num_keys


# Training is the longest part, and the same code for all: one trade in every run, the others in the long one.
@pytest.mark.parametrize(
    "trade",
    [pytest.param(name, marks=() if name == "logistics" else pytest.mark.slow) for name in TRADES],
    indirect=True,
)
def test_a_model_of_the_trade_recommends_its_own_items_to_every_user(trade: Trade) -> None:
    for stage in ("train", "score"):
        run_stage(stage, trade.warehouse, trade.config)
    assert trade.warehouse.read(SEQUENCES).select("split").distinct().count() == 3
    known = {row["item_id"] for row in trade.warehouse.read(VOCABULARY).select("item_id").collect()}
    assert known <= set(trade.process.item_ids)
    rows = trade.warehouse.read(PREDICTIONS).where("user_id IS NOT NULL").collect()
    assert {row["item_id"] for row in rows} <= known
    assert Counter(row["user_id"] for row in rows) == dict.fromkeys(
        {trade.process.user_ids[user] for user in trade.clean.user_N}, trade.config.score.k
    )
