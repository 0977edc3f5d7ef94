"""What each baseline takes, and how good it is: python -m tests.benchmarks.baselines [--quick]

On the demo's simulated trade (the newest fifth of the time is test), on rsc15-100k's 387 published positions, and on yoochoose1_64 (116,167
training sessions, 55,898 test prefixes; --quick leaves it out). Seconds are those of one Spark job on two cores that computes and counts
all ranks, after a first run of all of them on the smallest data. CPU seconds are those of the JVM and the Python workers, and say more where
others use the machine too. Recall@20 and MRR@20 in %, against the whole vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark import spark as spark_room
from llm_spark.config import SparkConfig
from llm_spark.evaluation.baselines import BASELINES
from llm_spark.simulation import SimulationConfig
from llm_spark.tokens import FIRST_ITEM_TOKEN
from tests.benchmarks.quality.published_cuts import Yoochoose
from tests.benchmarks.simulated_histories import simulated_histories
from tests.conftest import SHARED_DATA
from tests.evaluation.session_sequences import SessionSequences, rsc15, session_sequences

K = 20
COLUMNS = ("sequence_id", "user_id", "tokens", "session_starts", "event_times", "first_target")
PUBLISHED = {
    ("yoochoose1_64", "popularity"): "POP 6.71/1.65",
    ("yoochoose1_64", "session_popularity"): "S-POP 30.44/18.35",
    ("yoochoose1_64", "item_knn"): "Item-KNN 51.60/21.81",
    ("rsc15-100k", "vsknn"): "V-SkNN 61.0/33.4",
}


def simulated(spark: SparkSession) -> SessionSequences:
    histories = simulated_histories(SimulationConfig())
    tests, training = (
        spark.createDataFrame(table.select(COLUMNS)).repartition(2)
        for table in (histories.held_out, histories.training)
    )
    tokens = list(range(FIRST_ITEM_TOKEN, histories.num_tokens))
    vocabulary = spark.createDataFrame(pa.table({"token": pa.array(tokens, pa.int32())}))
    return SessionSequences(tests, training, vocabulary, {})


def yoochoose(spark: SparkSession) -> SessionSequences:
    cut = Yoochoose.read(SHARED_DATA / "yoochoose1_64")
    tests = [[*prefix, label] for prefix, label in zip(cut.prefixes, cut.labels, strict=True)]
    numbered = [{f"{n:06}": session for n, session in enumerate(sessions)} for sessions in (cut.sessions, tests)]
    return session_sequences(spark, *numbered, only_last=True)


def data_sets(spark: SparkSession, quick: bool) -> Iterator[tuple[str, SessionSequences]]:
    if SHARED_DATA.is_dir():
        yield "rsc15-100k", rsc15(spark, SHARED_DATA / "rsc15-100k")
    yield "demo", simulated(spark)
    if SHARED_DATA.is_dir() and not quick:
        yield "yoochoose1_64", yoochoose(spark)


def cpu_seconds() -> float:
    """What this process's living descendants, the JVM and the Python workers, and their dead ones have used (Linux)."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue  # it has ended since
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        used[int(stat.parent.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    found, waiting = 0.0, [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += sum(used[process] for process in below)
        waiting += below
    return found


def measured(ranks: DataFrame) -> tuple[int, float, float]:
    """Number of positions, recall@20, MRR@20."""
    hit = F.col("rank") <= K
    gains = ranks.agg(
        F.count("*"), F.avg(F.when(hit, 1.0).otherwise(0.0)), F.avg(F.when(hit, 1 / F.col("rank")).otherwise(0.0))
    )
    num, recall, mrr = gains.collect()[0]
    return num, recall, mrr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without yoochoose1_64")
    given = parser.parse_args()
    spark = spark_room.session(SparkConfig(master="local[2]", driver_memory="4g"), "baselines")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for place, (data_set, sequences) in enumerate(data_sets(spark, given.quick)):
        held = [frame.persist() for frame in (sequences.tests, sequences.training, sequences.vocabulary)]
        num_rows = [frame.count() for frame in held]
        if place == 0:
            for baseline in BASELINES.values():
                measured(baseline(*held, K))
        print(f"{data_set}: {num_rows[0]:,} test rows, {num_rows[1]:,} training rows, {num_rows[2]:,} items")
        for name, baseline in BASELINES.items():
            began, used = time.monotonic(), cpu_seconds()
            num, recall, mrr = measured(baseline(*held, K))
            seconds, cpu = time.monotonic() - began, cpu_seconds() - used
            beside = PUBLISHED.get((data_set, name), "")
            print(
                f"  {name:<20} {num:>7,} positions {seconds:6.1f} s  {cpu:6.1f} CPU s  {100 * recall:6.2f}/{100 * mrr:5.2f}  {beside}",
                flush=True,
            )
            results.setdefault(data_set, {})[name] = {
                "seconds": round(seconds, 2),
                "cpu_seconds": round(cpu, 2),
                "recall": recall,
                "mrr": mrr,
            }
        for frame in held:
            frame.unpersist()
    print(json.dumps({"benchmark": "baselines", "results": results}))


if __name__ == "__main__":
    main()
