"""Ingest against Spark's bare read and write of the same lines: python -m tests.benchmarks.ingest [--quick]

Two million JSON lines of 30 days in 8 files (200k with --quick): Zipf items, 1 % of the lines offered twice, 1 % at fault. In turns
within one JVM, each turn into a folder of its own:

    ours             the whole stage: events, events_rejected, ledger, checks and account, with the attribute and the filter of the demo
    bare_read_write  spark.read.schema(...).json(lines).write.format("delta"): no verdict, no id, no duplicate found, no partition
    usual_rules      the script that most would write who must set faults aside, find duplicates and have a partition a day: judged rows kept in
                     Spark's cache, dropDuplicates on a hash, two tables, counts by file and reason. It takes no second night and forgets
                     which files it read (for comparison, no bar)
    bare_by_day      as bare_read_write, partitioned by the day of the event, one file a day: how `events` lies (for comparison, no bar)
    inferred         as bare_read_write, with the schema inferred as most people write it (for comparison, no bar)

The counts of ours are held against DuckDB's over the same lines. A ratio is the median over turns of our time over theirs;
`cpu_ratios` are those of the JVM's processor time, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from llm_spark import config as settings
from llm_spark import spark as spark_room
from llm_spark.config import SparkConfig
from llm_spark.pipelines.stages import run_stage
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES
from llm_spark.tables.warehouse import Warehouse

BARS = {"bare_read_write": 1.5}
NUM_FILES = 8
NUM_DAYS = 30
SCHEMA = "user string, item string, time timestamp, type string, value double, agent string"


def write_lines(folder: Path, num_lines: int) -> None:
    """Lines of about 150 bytes, in time order, as an access log would have them."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    types, agents = (
        ["view", "cart", "purchase"],
        ["Mozilla/5.0 (X11; Linux x86_64)", "app/3.1 (iOS 17)", "Googlebot/2.1"],
    )
    per_file = num_lines // NUM_FILES
    for place in range(NUM_FILES):
        seconds = np.sort(random.integers(0, NUM_DAYS * 86_400 // NUM_FILES, per_file)) + place * (
            NUM_DAYS * 86_400 // NUM_FILES
        )
        times = np.datetime_as_string(np.datetime64("2025-01-01T00:00:00") + seconds, unit="s")
        users, items = random.integers(0, 100_000, per_file), random.zipf(1.3, per_file) % 50_000
        kinds, values = random.choice(3, per_file, p=[0.8, 0.15, 0.05]), random.gamma(2, 10, per_file).round(2)
        agent, fault = random.choice(3, per_file, p=[0.6, 0.39, 0.01]), random.random(per_file)
        lines: list[str] = []
        for n in range(per_file):
            line = json.dumps(
                {
                    "user": f"user-{users[n]:06d}",
                    "item": f"item-{items[n]:05d}",
                    "time": f"{times[n]}Z",
                    "type": types[kinds[n]],
                    "value": values[n],
                    "agent": agents[agent[n]],
                }
            )
            if fault[n] < 0.005:
                line = line[: len(line) // 2]
            elif fault[n] < 0.01:
                line = line.replace(f'"item-{items[n]:05d}"', "null")
            elif fault[n] < 0.02:
                lines.append(line)
            lines.append(line)
        (folder / f"part-{place:02d}.jsonl").write_text("\n".join(lines) + "\n")


def expected_counts(lines: Path) -> tuple[int, int]:
    """Events and rejected records as DuckDB finds them."""
    (found,) = duckdb.sql(
        f"""
        WITH lines AS (SELECT line FROM read_csv('{lines}/*.jsonl', columns={{'line': 'VARCHAR'}}, delim='\x01', quote='', escape='', header=false)),
        fields AS (SELECT json_valid(line) AS ok, CASE WHEN json_valid(line) THEN line::JSON END AS j FROM lines),
        judged AS (SELECT j, ok AND j->>'item' IS NOT NULL AND j->>'agent' NOT LIKE '%bot%' AS good FROM fields)
        SELECT count(DISTINCT j::VARCHAR) FILTER (WHERE good), count(*) FILTER (WHERE NOT good) FROM judged
        """
    ).fetchall()
    return found[0], found[1]


def ours(spark: SparkSession, lines: Path, expected: tuple[int, int]) -> Callable[[Path], None]:
    columns = [f"ingest.columns.{name}={name}" for name in ("user", "item", "time", "type", "value")]
    given = ["ingest.format=jsonl", f"ingest.paths=[{lines}]", *columns, "ingest.columns.attributes.agent=agent"]

    def run(folder: Path) -> None:
        config = settings.load(
            None, [*given, f"warehouse={folder}", "ingest.filters=[\"agent NOT LIKE '%bot%'\"]"], ("ingest",)
        )
        warehouse = Warehouse(spark, config.warehouse)
        account = run_stage("ingest", warehouse, config)
        assert (account.rows_out["events"], account.rows_out["rejected"]) == expected, (account.rows_out, expected)

    return run


def bare(spark: SparkSession, lines: Path, by_day: bool = False, inferred: bool = False) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        reader = spark.read if inferred else spark.read.schema(SCHEMA)
        rows = reader.json(str(lines))
        if by_day:
            rows = rows.withColumn("day", F.to_date("time")).repartition("day")
        writer = rows.write.format("delta")
        (writer.partitionBy("day") if by_day else writer).save(str(folder / "bare"))

    return run


def usual_rules(spark: SparkSession, lines: Path) -> Callable[[Path], None]:
    reason = (
        F.when(F.col("_corrupt_record").isNotNull(), "unparsable")
        .when(F.col("agent").like("%bot%"), "filtered")
        .when(F.col("item").isNull(), "missing_item")
    )
    names = [field.split()[0] for field in SCHEMA.split(", ")]

    def run(folder: Path) -> None:
        rows = spark.read.schema(f"{SCHEMA}, _corrupt_record string").json(str(lines))
        judged = rows.select(
            *names,
            F.coalesce("_corrupt_record", F.when(reason.isNotNull(), F.to_json(F.struct(*names)))).alias("raw"),
            F.col("_metadata.file_path").alias("source_file"),
            reason.alias("reason"),
            F.sha2(F.concat_ws("|", *names), 256).alias("event_id"),
            F.to_date("time").alias("day"),
        ).persist()
        judged.groupBy("source_file", "reason").count().collect()
        is_event = F.col("reason").isNull()
        rejected = judged.where(~is_event).select("source_file", "raw", "reason")
        rejected.write.format("delta").save(str(folder / "rejected"))
        accepted = judged.where(is_event).drop("raw", "reason").dropDuplicates(["event_id"])
        accepted.repartition("day").write.format("delta").partitionBy("day").save(str(folder / "events"))
        judged.unpersist()

    return run


def check_usual(spark: SparkSession, folder: Path, expected: tuple[int, int]) -> None:
    found = tuple(spark.read.format("delta").load(str(folder / table)).count() for table in ("events", "rejected"))
    assert found == expected, (found, expected)


def check(spark: SparkSession, folder: Path, expected: tuple[int, int]) -> None:
    """The tables hold what the account said."""
    warehouse = Warehouse(spark, str(folder))
    assert (warehouse.read(EVENTS).count(), warehouse.read(EVENTS_REJECTED).count()) == expected
    sums = warehouse.read(INGESTED_FILES).agg(F.sum("num_accepted"), F.sum("num_rejected")).first()
    assert sums is not None
    assert tuple(sums) == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200k lines, two turns")
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--turns", type=int, default=0)
    given = parser.parse_args()
    num_lines, num_turns = (200_000, 2) if given.quick else (2_000_000, 3)
    num_lines, num_turns = given.lines or num_lines, given.turns or num_turns
    spark = spark_room.session(SparkConfig(driver_memory="4g"), "ingest benchmark")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        lines = root / "lines"
        write_lines(lines, num_lines)
        expected = expected_counts(lines)
        rivals = {
            "ours": ours(spark, lines, expected),
            "bare_read_write": bare(spark, lines),
            "usual_rules": usual_rules(spark, lines),
            "bare_by_day": bare(spark, lines, by_day=True),
            "inferred": bare(spark, lines, inferred=True),
        }
        checks = {"ours": check, "usual_rules": check_usual}
        seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
        cpu_seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
        for turn in range(num_turns + 1):  # the first warms the JVM up and is not counted
            for rival, run in rivals.items():
                folder = root / f"{rival}-{turn}"
                began, cpu_before = time.perf_counter(), cpu_seconds_of(spark)
                run(folder)
                took, cpu_took = time.perf_counter() - began, cpu_seconds_of(spark) - cpu_before
                print(f"turn {turn} {rival}: {took:.2f} s, {cpu_took:.2f} s of CPU", flush=True)
                if turn:
                    seconds[rival].append(took)
                    cpu_seconds[rival].append(cpu_took)
                if rival in checks:
                    checks[rival](spark, folder, expected)
                shutil.rmtree(folder)
    spark.stop()
    print(f"\n{num_lines:,} lines, {expected[0]:,} events, {expected[1]:,} rejected; seconds by turn")
    for rival, took in seconds.items():
        print(f"  {rival:<16} {statistics.median(took):7.2f}   {' '.join(f'{t:.2f}' for t in took)}")
    result = {"ratios": ratios_to(seconds), "bars": BARS, "cpu_ratios": ratios_to(cpu_seconds)}
    print(json.dumps({"benchmark": "ingest", **result}))


def ratios_to(seconds: dict[str, list[float]]) -> dict[str, float]:
    ours = seconds["ours"]
    return {
        rival: round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)
        for rival, theirs in seconds.items()
        if rival != "ours"
    }


def cpu_seconds_of(spark: SparkSession) -> float:
    """Processor time of the JVM so far: it tells the work even where others use the machine."""
    pid = spark._jvm.java.lang.ProcessHandle.current().pid()  # type: ignore[union-attr]
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
