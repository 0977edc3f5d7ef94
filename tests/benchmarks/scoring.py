"""Scoring against a naive torch loop, and a night of many users: python -m tests.benchmarks.scoring [--quick] [--users N]

Users of the simulator with untrained weights of the default network, one thread, no Spark. In turns within one run:

    ours        the kernel `advance` over Arrow batches of 10,000 users, as Spark hands them to a worker, from their first event on; it
                also makes their new states
    naive_loop  the same network over the same users, 256 at a time as they come, padded (naive_scoring.py)

Lists and scores of both are compared. `naive_loop` is the median over turns of its time over ours; above 1 ours is faster.

Then the stage itself, in Spark, on N users (a million; 20,000 with --quick) of five events and two sessions each on
average: all of them, then a night in which one in a hundred has a new session. `incremental_1pct` is the second's time over
the first's. Printed too: the largest resident set of a Python worker, which must not grow with the users.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch

from llm_spark import config as settings
from llm_spark import spark as spark_room
from llm_spark.config import ModelConfig, SparkConfig
from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.stages import run_stage
from llm_spark.scoring import advance
from llm_spark.scoring.histories import history_batch
from llm_spark.scoring.offers import Offers
from llm_spark.simulation import SimulationConfig
from llm_spark.tables.warehouse import Warehouse
from tests.benchmarks.naive_scoring import top_items_of
from tests.benchmarks.scorable_warehouse import add_a_night, write_users
from tests.benchmarks.simulated_histories import SimulatedHistories, simulated_histories

BARS = {"naive_loop": 1.5}
K = 10
BATCH_ROWS = 256
ARROW_ROWS = 10_000
"""spark.sql.execution.arrow.maxRecordsPerBatch"""
MAX_TOKENS = 500
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Lists:
    """Of every user, in the order of the users: K tokens and their logits."""

    tokens: np.ndarray
    scores: np.ndarray


def untrained_artifact(folder: str, histories: SimulatedHistories) -> str:
    torch.manual_seed(1)
    model = NextEventModel(ModelConfig(use_time_gaps=False), histories.num_tokens, histories.num_event_types)
    with torch.no_grad():
        model.head.weight.mul_(5)  # an untrained head's logits are too near one another to be ordered
    save_manifest(folder, save_content(folder, model, {}, {}))
    return folder


def ours(path: str, users: pa.RecordBatch) -> Lists:
    arrow_batches = (users.slice(first, ARROW_ROWS) for first in range(0, users.num_rows, ARROW_ROWS))
    kernel = advance(
        arrow_batches,
        artifact_path=path,
        model_id="m1",
        offers=Offers(K),
        batch_rows=BATCH_ROWS,
        max_tokens=MAX_TOKENS,
        fills_from_the_past=False,
    )
    found = pa.Table.from_batches(batch for batch in kernel if batch.column("rank").null_count == 0)
    place = {user: place for place, user in enumerate(users.column("user_id").to_pylist())}
    user = np.array([place[name] for name in found.column("user_id").to_pylist()])
    rank = found.column("rank").to_numpy() - 1
    tokens = np.zeros((users.num_rows, K), np.int64)
    scores = np.zeros((users.num_rows, K))
    tokens[user, rank], scores[user, rank] = found.column("token").to_numpy(), found.column("score").to_numpy()
    return Lists(tokens, scores)


def with_sessions_named(users: pa.RecordBatch) -> pa.RecordBatch:
    """With the ids of the sessions and their ends, as the stage hands them to the kernel."""
    starts, times = users.column("session_starts").to_pylist(), users.column("event_times").to_pylist()
    names = [[str(place) for place in range(len(of_user))] for of_user in starts]
    last_events = [[*(place - 1 for place in of_user[1:]), -1] for of_user in starts]
    ends = [[of[place] * 1_000_000 for place in last] for of, last in zip(times, last_events, strict=True)]
    named = users.append_column("session_ids", pa.array(names, pa.list_(pa.string())))
    return named.append_column("sessions_ended_at", pa.array(ends, pa.list_(pa.timestamp("us", tz="UTC"))))


def naive(path: str, users: pa.RecordBatch) -> Lists:
    model = load_artifact(path).model
    found = [
        top_items_of(model, history_batch(users.slice(first, BATCH_ROWS)), K)
        for first in range(0, users.num_rows, BATCH_ROWS)
    ]
    return Lists(torch.cat([each[0] for each in found]).numpy(), torch.cat([each[1] for each in found]).numpy())


def require_same(one: Lists, other: Lists) -> None:
    apart = float(np.abs(one.scores - other.scores).max())
    # Where two items score alike but for rounding, either may stand first.
    differs = (one.tokens != other.tokens) & (np.abs(one.scores - other.scores) > TOLERANCE)
    if apart > TOLERANCE or differs.any():
        raise SystemExit(f"the naive loop and ours differ: scores by {apart}, {int(differs.sum())} places of the lists")


def night_of(num_users: int, num_items: int) -> float:
    """Seconds of a night of 1 % new sessions over those of scoring everybody."""
    spark = spark_room.session(SparkConfig(driver_memory="3g"), "benchmark scoring")
    with tempfile.TemporaryDirectory() as folder:
        warehouse = Warehouse(spark, folder)
        write_users(warehouse, num_users, num_items)
        config = settings.load(None, [f"warehouse={folder}", "ingest.columns={user: user, item: item, time: time}"], ())
        everybody = run_stage("score", warehouse, config)
        add_a_night(warehouse, num_users, num_items, one_in=100)
        visitors = run_stage("score", warehouse, config)
    spark.stop()
    for name, account in (("all", everybody), ("1 %", visitors)):
        print(f"{name:<4} {account.seconds:7.1f} s  {account.rows_out}  {'; '.join(account.remarks)}")
    return visitors.seconds / everybody.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--users", type=int, default=0, help="scored by the stage in Spark")
    given = parser.parse_args()
    torch.set_num_threads(1)
    num_users, num_items = (2_000, 1_000) if given.quick else (20_000, 10_000)
    histories = simulated_histories(
        SimulationConfig(num_users=num_users, num_items=num_items, items_per_intent=num_items * 3 // 20)
    )
    users = histories.held_out.combine_chunks().to_batches()[0]
    users = with_sessions_named(users.take(pa.array(np.random.default_rng(0).permutation(users.num_rows))))
    seconds: dict[str, list[float]] = {"ours": [], "naive_loop": []}
    with tempfile.TemporaryDirectory() as folder:
        path = untrained_artifact(folder, histories)
        for _ in range(given.turns or (1 if given.quick else 3)):
            lists = {}
            for name, work in (("ours", ours), ("naive_loop", naive)):
                began = time.perf_counter()
                lists[name] = work(path, users)
                seconds[name].append(time.perf_counter() - began)
            require_same(lists["ours"], lists["naive_loop"])
    num_events = len(users.column("tokens").flatten())
    print(f"{users.num_rows:,} users, {num_events:,} events, {num_items:,} items, lists of {K}; one thread")
    for name, all_turns in seconds.items():
        middle = statistics.median(all_turns)
        print(f"{name:<11} {middle:7.2f} s  {users.num_rows / middle:9,.0f} users/s")
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["naive_loop"], strict=True)]
    ratio = {"naive_loop": round(statistics.median(ratios), 2)}
    num_scored = given.users or (20_000 if given.quick else 1_000_000)
    ratio["incremental_1pct"] = round(night_of(num_scored, num_items), 3)
    print(json.dumps({"benchmark": "scoring", "ratios": ratio, "bars": BARS}))


if __name__ == "__main__":
    main()
