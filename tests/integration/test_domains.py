"""Each shipped trade from simulated raw logs to tables, by its own settings in conf/: nothing in the code knows what an item is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark.config import Config
from llm_spark.config.outcomes import AMOUNT
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import (
    EVALUATION,
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_FILES,
    OUTCOMES,
    PREDICTIONS,
    SEQUENCES,
    SESSIONS,
    SPLITS,
    VOCABULARY,
)
from llm_spark.simulation import Events, LogsWritten, Process, SimulationConfig, preset, write_logs
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import ABSTAINED

CONF = Path(__file__).parents[2] / "conf"
OUTCOMES_OF = {"finance": ["spend", "declined"], "logistics": [], "health": ["comes_back", "has_a_lab_test"]}
SMALL = {
    "num_users": 50,
    "num_items": 60,
    "num_tastes": 4,
    "num_intents": 3,
    "items_per_intent": 25,
    "mean_sessions_per_user": 4.0,
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
    "sequences.validation_fraction=0.28",
    "sequences.test_fraction=0.32",
    "sessionize.num_buckets=1",
    "evaluate.num_replicates=40",
    "evaluate.baselines=[popularity]",
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


@pytest.fixture(scope="module", params=OUTCOMES_OF)
def trade(request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Trade:
    folder = tmp_path_factory.mktemp(request.param)
    # Of outcomes some windows must close, in each part of the days.
    simulation = replace(preset(request.param), **SMALL, num_days=28 if OUTCOMES_OF[request.param] else 8)
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


def test_each_outcome_of_its_settings_counts_events_that_the_trade_has_and_comes_about_for_some(trade: Trade) -> None:
    outcomes = trade.config.model.outcomes
    assert [outcome.name for outcome in outcomes] == OUTCOMES_OF[trade.simulation.profile.name]
    event_types = {row["event_type"] for row in trade.warehouse.read(EVENTS).select("event_type").distinct().collect()}
    rows = trade.warehouse.read(SEQUENCES).select("split", "outcome_labels").collect() if outcomes else []
    for place, outcome in enumerate(outcomes):
        assert set(outcome.event_types) <= event_types
        came_about = {
            (row["split"], label > 0)
            for row in rows
            for label in row["outcome_labels"][place :: len(outcomes)]
            if label is not None
        }
        assert came_about == set(product(SPLITS, (False, True)))


# Training is the longest part, and the same code for all: one trade in every run, the others in the long one.
@pytest.mark.parametrize(
    "trade",
    [pytest.param(name, marks=() if name == "finance" else pytest.mark.slow) for name in OUTCOMES_OF],
    indirect=True,
)
def test_a_model_of_the_trade_is_judged_and_foretells_items_and_outcomes_of_every_user(trade: Trade) -> None:
    for stage in ("train", "evaluate", "score"):
        run_stage(stage, trade.warehouse, trade.config)
    assert trade.warehouse.read(SEQUENCES).select("split").distinct().count() == 3
    users = {trade.process.user_ids[user] for user in trade.clean.user_N}

    known = {row["item_id"] for row in trade.warehouse.read(VOCABULARY).select("item_id").collect()}
    assert known <= set(trade.process.item_ids)
    rows = trade.warehouse.read(PREDICTIONS).where("user_id IS NOT NULL").collect()
    offered = [row for row in rows if row["source"] != ABSTAINED]
    assert {row["item_id"] for row in offered} <= known
    least, k = trade.config.score.min_probability, trade.config.score.k
    assert min(row["probability"] for row in offered) >= least
    if least:  # whoever has no item as probable as that has abstained
        assert {row["user_id"] for row in rows} == users
        assert max(Counter(row["user_id"] for row in offered).values()) <= k
    else:
        assert Counter(row["user_id"] for row in rows) == dict.fromkeys(users, k)

    outcomes = trade.config.model.outcomes
    own = trade.warehouse.read(EVALUATION).where("recommender = 'model' AND against IS NULL AND slice = 'all'")
    num_examples = {row["name"]: row["num_examples"] for row in own.collect() if 0 <= row["value"] < np.inf}
    measures = [f"{each.name}.{'squared_error_log' if each.kind == AMOUNT else 'auc'}" for each in outcomes]
    assert all(num_examples.get(name) for name in ("recall@10", "recall@20", *measures))
    foretold = trade.warehouse.read_or_empty(OUTCOMES).collect()
    assert Counter((row["user_id"], row["outcome"]) for row in foretold) == Counter(
        product(users, (each.name for each in outcomes))
    )
