"""Sessionize against its rivals on the same events: python -m tests.benchmarks.sessionize [--quick] [--scale] [--only PART]

5M generated events of a year, Zipf users and one bot with 5 % of them, in a Delta table of a day a partition. In turns within one run:

    ours            the whole stage: events table -> sessions table, its counting and checking included
    bare_shuffle    repartition by user, sort, write of the same rows and columns: the least that any such job must do
    lag_window      lag + running sum + collect_list over a window, the usual way
    session_window  Spark's own
    duckdb, polars  one machine's engines on the same Parquet files, with as many threads
    hot_key         ours on this log against ours on one whose users are all alike, in the same memory
    incremental_1pct, incremental_1pct_late
                    the stage after 1 % of new events, the newest of the year (the median of three such nights) or spread over all times
                    and users, against the stage on all events; both less their fixed start-up, which is the same stage on a log of 2,000
                    events of a week

The sessions of all are compared (people's sessions, events, a hash of their contents). `--scale` adds the log-log slope from 1M to 10M events,
and a log of one single user in a JVM of 1 GiB, with the peak memory of its Python workers. Ratios are medians over the turns: of wall time,
and as `cpu_ratios` of CPU seconds of this process and all under it, which a busy machine blurs less. Above 1 means that ours is faster,
except where the design says that it is our time over theirs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
from deltalake import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark import spark as spark_room
from llm_spark.config import Config, SparkConfig
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.sessionize import sessionize
from llm_spark.schemas import EVENTS, SESSIONS
from llm_spark.tables.warehouse import Warehouse
from tests.benchmarks import sessionize_rivals as rivals
from tests.benchmarks.event_logs import LogShape, bot_of, event_log

BARS = {
    "bare_shuffle": 1.4,
    "lag_window": 3.0,
    "hot_key": 1.3,
    "incremental_1pct": 0.1,
    "incremental_1pct_late": 0.1,
    "slope": 1.05,
}
OURS_OVER_THEIRS = ("bare_shuffle", "hot_key")
SMALL = 2_000
NUM_NIGHTS = 3


@dataclass(frozen=True)
class Cost:
    """Of one piece of work: seconds on the clock, CPU seconds of this process and all under it."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """Of this process and all under it, those that have ended included."""
    tick, children, used = os.sysconf("SC_CLK_TCK"), {}, {}  # type: ignore[var-annotated]
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(process))
        used[int(process)] = sum(map(int, fields[11:15])) / tick
    total, waiting = 0.0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        total += used.get(process, 0.0)
        waiting += children.get(process, [])
    return total


def cost_of(work: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return Cost(time.perf_counter() - wall, cpu_seconds() - cpu)


def median_cost(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs))


class Log:
    """A warehouse whose events table is a generated log."""

    def __init__(self, spark: SparkSession, folder: Path, shape: LogShape, config: Config) -> None:
        self.shape, self.config, self.folder = shape, config, folder
        self.warehouse = Warehouse(spark, str(folder / "warehouse"))
        raw = folder / "raw"
        raw.mkdir(parents=True)
        for place, piece in enumerate(event_log(shape)):
            pq.write_table(piece, raw / f"{place}.parquet")
        self._rows = spark.read.parquet(str(raw)).withColumns(
            {
                "attributes": F.lit(None).cast("map<string,string>"),
                "event_date": F.to_date("event_time"),
                "source_file": F.lit("generated"),
                "ingested_at": F.lit("2026-01-01").cast("timestamp"),
                "run_id": F.lit("generated"),
            }
        )

    def rows(self, condition: Column | None = None) -> DataFrame:
        return self._rows if condition is None else self._rows.where(condition)

    def add(self, rows: DataFrame) -> None:
        """As ingest does: a file for each day."""
        self.warehouse.append(EVENTS, rows.repartition("event_date"), f"events {time.time_ns()}")

    def run_stage(self) -> Account:
        account = Account("sessionize")
        sessionize(self.warehouse, self.config, account)
        return account

    def run_in_full(self) -> None:
        shutil.rmtree(self.warehouse.path(SESSIONS), ignore_errors=True)
        self.run_stage()

    def run_on_new(self, num_new: int) -> None:
        found = self.run_stage().rows_in.get("new_events")
        if found != num_new:
            raise AssertionError(f"{num_new} new events were to be taken in, the stage saw {found}")

    def event_files(self) -> list[str]:
        return files_of(Path(self.warehouse.path(EVENTS)))

    def fingerprint(self) -> tuple[int, int, int, int]:
        return fingerprint(Path(self.warehouse.path(SESSIONS)), self.shape)


def files_of(table: Path) -> list[str]:
    return [unquote(uri.removeprefix("file://")) for uri in DeltaTable(str(table)).file_uris()]


def fingerprint(out: Path, shape: LogShape) -> tuple[int, int, int, int]:
    files = files_of(out) if (out / "_delta_log").exists() else [str(out / "sessions.parquet")]
    return rivals.fingerprint(f"read_parquet({files!r}, hive_partitioning = false)", bot_of(shape))


def incremental_costs(log: Log) -> dict[str, Cost]:
    """The stage on all but some nights of 1 % of the log each, then night by night (their median), the newest events last; then on 1 % that
    is spread over all times and users."""
    late = F.pmod(F.xxhash64("event_id"), F.lit(100)) == 0
    ends = [1 - (NUM_NIGHTS - night) / 100 for night in range(NUM_NIGHTS)]
    percentiles = F.percentile(F.unix_micros("event_time"), F.array(*map(F.lit, ends)))
    boundaries = log.rows().agg(percentiles.cast("array<bigint>").alias("at")).first()
    assert boundaries is not None
    micros = F.unix_micros("event_time")
    log.add(log.rows(~late & (micros < boundaries["at"][0])))
    log.run_in_full()

    def on_new(condition: Column) -> Cost:
        rows = log.rows(condition)
        log.add(rows)
        return cost_of(functools.partial(log.run_on_new, rows.count()))

    spans = itertools.pairwise([*boundaries["at"], sys.maxsize])
    nights = [on_new(~late & (micros >= begin) & (micros < end)) for begin, end in spans]
    costs = {"night": median_cost(nights), "late": on_new(late)}
    taken_in = log.fingerprint()
    costs["full"] = cost_of(log.run_in_full)
    if log.fingerprint() != taken_in:
        raise AssertionError("sessions after some nights of new events are not those of all events at once")
    return costs


def compared(log: Log, uniform: Log, scratch: Path, num_turns: int, num_slow: int, cores: int) -> dict[str, list[Cost]]:
    """Each contender's costs turn by turn, `ours` and its rivals on `log`, `uniform` for ours on the other."""
    config = log.config.sessionize
    events = log.warehouse.read(EVENTS)
    files = log.event_files()
    gap = config.gap_seconds
    contenders: dict[str, Callable[[Path], object]] = {
        "bare_shuffle": lambda out: rivals.bare_shuffle(events, out, config.num_buckets),
        "lag_window": lambda out: rivals.lag_window(events, out, gap),
        "session_window": lambda out: rivals.session_window(events, out, gap),
        "duckdb": lambda out: rivals.duck(files, out, gap, cores, "6GB"),
        "polars": lambda out: rivals.polars(files, out, gap),
    }
    log.run_in_full()  # the first pass pays for what is compiled and started only once
    expected = log.fingerprint()
    contenders["bare_shuffle"](scratch / "first")
    costs: dict[str, list[Cost]] = {name: [] for name in ("ours", "uniform", *contenders)}
    for turn in range(num_turns):
        costs["ours"].append(cost_of(log.run_in_full))
        costs["uniform"].append(cost_of(uniform.run_in_full))
        for name, contender in contenders.items():
            if name != "bare_shuffle" and turn >= num_slow:
                continue
            out = scratch / name
            shutil.rmtree(out, ignore_errors=True)
            costs[name].append(cost_of(lambda run=contender, to=out: run(to)))
            if name != "bare_shuffle" and fingerprint(out, log.shape) != expected:
                raise AssertionError(f"{name} made {fingerprint(out, log.shape)} instead of {expected}")
        print(f"turn {turn + 1}: " + ", ".join(f"{k} {v[-1].wall:.1f} s" for k, v in costs.items() if v), flush=True)
    return costs


def ratios_of(costs: dict[str, list[Cost]], kind: str) -> dict[str, float]:
    median = {name: getattr(median_cost(of_name), kind) for name, of_name in costs.items()}
    ours = median.pop("ours")
    ratios = {"hot_key": ours / median.pop("uniform")}
    for name, theirs in median.items():
        ratios[name] = ours / theirs if name in OURS_OVER_THEIRS else theirs / ours
    return ratios


def incremental_ratios(costs: dict[str, Cost], fixed: dict[str, Cost], kind: str) -> dict[str, float]:
    beyond = {name: max(0.0, getattr(costs[name], kind) - getattr(fixed[name], kind)) for name in costs}
    return {
        "incremental_1pct": beyond["night"] / beyond["full"],
        "incremental_1pct_late": beyond["late"] / beyond["full"],
    }


def slope(spark: SparkSession, folder: Path, config: Config) -> float:
    """Of log(time) over log(events), from 1M to 10M events."""
    seconds = []
    for millions in (1, 10):
        log = Log(spark, folder / f"{millions}m", LogShape(millions * 1_000_000), config)
        log.add(log.rows())
        log.run_in_full()
        seconds.append(statistics.median(cost_of(log.run_in_full).wall for _ in range(3)))
        print(f"{millions}M events: {seconds[-1]:.1f} s", flush=True)
        shutil.rmtree(log.folder)
    return math.log10(seconds[1] / seconds[0])


# Run in a process of its own, so that its memory is its own: all events are one user's.
_GIANT = """
import sys, threading, time
from pathlib import Path
from llm_spark.config import Config, SparkConfig
from llm_spark import spark as spark_room
from tests.benchmarks.event_logs import LogShape
from tests.benchmarks.sessionize import Log, peak_of_workers
folder, num_events, bot_share = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
spark = spark_room.session(SparkConfig(master="local[2]", driver_memory="1g"), "giant")
log = Log(spark, folder, LogShape(num_events, bot_share=bot_share), Config())
log.add(log.rows())
peaks, done = [0], threading.Event()
def watch():
    while not done.wait(0.05):
        peaks.append(peak_of_workers())
watcher = threading.Thread(target=watch)
watcher.start()
log.run_in_full()
done.set(); watcher.join()
print("peak", max(peaks))
"""


def peak_of_workers() -> int:
    """The largest peak resident memory of a Python worker of Spark that is running now, in MiB."""
    peak = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        if b"pyspark.daemon" in command and "VmHWM:" in status:
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) // 1024)
    return peak


def giant_user(folder: Path, num_events: int) -> dict[str, int]:
    """Peak MiB of a Python worker where all events are one user's, and where users are many, the JVM's heap being 1 GiB."""
    peaks = {}
    for name, share in {"giant_user": 1.0, "many_users": 0.0}.items():
        command = [sys.executable, "-c", _GIANT, str(folder / name), str(num_events), str(share)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the run with {name} failed: {done.stderr[-2000:]}")
        peaks[f"{name}_worker_mib"] = int(done.stdout.split("peak")[1])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the events and days, one turn; for development"
    )
    parser.add_argument(
        "--scale", action="store_true", help="also 1M against 10M events, and one user larger than memory"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--events", type=int, default=0, help="another number of events")
    parser.add_argument("--only", choices=["rivals", "incremental", "scale"], help="one part of it")
    arguments = parser.parse_args()
    num_events = arguments.events or (500_000 if arguments.quick else 5_000_000)
    num_turns, num_slow = (1, 1) if arguments.quick else (arguments.turns, 1)
    cores = os.cpu_count() or 1
    spark = spark_room.session(SparkConfig(driver_memory="6g"), "benchmark sessionize")
    config, shape = Config(), LogShape(num_events, num_days=37 if arguments.quick else 365)
    result: dict[str, object] = {"benchmark": "sessionize"}
    ratios: dict[str, float] = {}
    cpu_ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only in (None, "rivals"):
            log = Log(spark, folder / "log", shape, config)
            log.add(log.rows())
            alike = replace(shape, bot_share=0.0, zipf_exponent=0.0)
            uniform = Log(spark, folder / "uniform", alike, config)
            uniform.add(uniform.rows())
            costs = compared(log, uniform, folder / "scratch", num_turns, num_slow, cores)
            ratios |= ratios_of(costs, "wall")
            cpu_ratios |= ratios_of(costs, "cpu")
            for contender, of_name in costs.items():
                cost = median_cost(of_name)
                print(
                    f"{contender:16s} {cost.wall:7.1f} s  {cost.cpu:7.1f} CPU s  {num_events / cost.wall:12,.0f} events/s"
                )
            shutil.rmtree(folder / "uniform")
            shutil.rmtree(folder / "log")
        if arguments.only in (None, "incremental"):
            for turn in ("first", "second"):  # the first turn pays for what is compiled only once
                small = incremental_costs(
                    Log(spark, folder / f"small {turn}", replace(shape, num_events=SMALL, num_days=7), config)
                )
            large = incremental_costs(Log(spark, folder / "nights", shape, config))
            for when in large:
                print(
                    f"{when:16s} {large[when].wall:7.1f} s  {large[when].cpu:7.1f} CPU s, of which fixed {small[when].wall:.1f} s"
                )
            ratios |= incremental_ratios(large, small, "wall")
            cpu_ratios |= incremental_ratios(large, small, "cpu")
        if arguments.scale or arguments.only == "scale":
            ratios["slope"] = slope(spark, folder, config)
        spark.stop()
        if arguments.scale or arguments.only == "scale":
            result |= giant_user(folder, num_events)
    result["ratios"] = {name: round(ratio, 3) for name, ratio in ratios.items()}
    result["cpu_ratios"] = {name: round(ratio, 3) for name, ratio in cpu_ratios.items()}
    result["bars"] = {name: bar for name, bar in BARS.items() if name in ratios}
    for name, ratio in ratios.items():
        print(
            f"{name:24s} {ratio:8.2f}   by CPU time {cpu_ratios.get(name, math.nan):8.2f}   bar {BARS.get(name, '-')}"
        )
    print(f"{num_events} events, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
