"""The outcome head against recency, frequency, monetary value: python -m tests.benchmarks.quality.outcomes [--validate] [--data NAME]
[--seeds N] [key=value ...]

Asked on one day, of every user seen before it: will there be the event within so many days? On online-retail a further
purchase within 30 days, on the simulator's shop a purchase within 7. The test day is the last one whose window the data
close; with --validate it is the day one window earlier, for the search of settings. Everything is learnt from what was known
on that day: labels whose windows had closed by then.

Rivals are logistic regression (scikit-learn) on the logarithms of recency (days since the last visit), frequency (visits) and
monetary value (total), taught by the newest closed day alone and by every week's; and gradient boosted trees on the same
weeks with the days since the first visit too. Intervals are bootstrapped over users, those of differences on the same users.

The tables are the history kernel's, the training the product's own rank function, the answers the scoring kernel's: all but
Spark.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llm_spark.config import Config, load
from llm_spark.model.artifact import save_manifest
from llm_spark.reader import Snapshot
from llm_spark.scoring import foretell
from llm_spark.simulation import SimulationConfig
from llm_spark.simulation.process import Process
from llm_spark.tokens import FIRST_ITEM_TOKEN, UNKNOWN_TOKEN
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import TrainingJob
from llm_spark.training.rank import train_rank
from llm_spark.transforms.history_kernel import HistoryRules, history_batches, split_spans, whole_span
from llm_spark.transforms.outcome_kernel import OutcomeRule, OutcomeRules

ROOT = Path(__file__).resolve().parents[3]
RETAIL = ROOT.parent / "shared" / "data" / "online-retail" / "by-day"
DAY, WEEK = 86_400, 7 * 86_400
NUM_RESAMPLES = 1000
MIN_ITEM_COUNT = 5

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """Events by user, then the end of their session, then time."""

    user_N: Ints
    session_N: Ints
    time_N: Ints
    """Epoch seconds."""
    item_N: Ints
    type_N: Ints
    """Token, from 2."""
    value_N: Floats
    event_type: int | None
    """The type that the outcome counts; None for all."""

    @classmethod
    def sorted(cls, event_type: int | None, **columns: NDArray) -> Log:
        ends = np.full(int(columns["session_N"].max()) + 1, 0)
        np.maximum.at(ends, columns["session_N"], columns["time_N"])
        keys = (columns["time_N"], columns["session_N"], ends[columns["session_N"]], columns["user_N"])
        order = np.lexsort(keys)
        return cls(**{name: column[order] for name, column in columns.items()}, event_type=event_type)

    def before(self, seconds: int) -> Log:
        """What was known at that time."""
        kept = self.time_N < seconds
        columns = {name: getattr(self, name)[kept] for name in self.__dataclass_fields__ if name != "event_type"}
        return Log(**columns, event_type=self.event_type)

    def counts(self) -> NDArray[np.bool_]:
        """Which events the outcome counts."""
        return np.ones(len(self.time_N), bool) if self.event_type is None else self.type_N == self.event_type


def online_retail() -> Log:
    """Lines of invoices of known customers, without cancellations; a session is an invoice."""
    if not RETAIL.is_dir():
        sys.exit(f"no data at '{RETAIL}': this benchmark needs online-retail there")
    lines = []
    for path in sorted(RETAIL.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                quantity, price = int(row["Quantity"]), float(row["UnitPrice"])
                if row["CustomerID"] and not row["InvoiceNo"].upper().startswith("C") and quantity > 0 and price > 0:
                    at = datetime.fromisoformat(row["InvoiceDate"]).replace(tzinfo=UTC)
                    item = row["StockCode"].strip().upper()
                    lines.append((row["CustomerID"], row["InvoiceNo"], int(at.timestamp()), item, quantity * price))
    users, invoices, times, items, values = zip(*lines, strict=True)
    return Log.sorted(
        None,
        user_N=np.unique(users, return_inverse=True)[1],
        session_N=np.unique(invoices, return_inverse=True)[1],
        time_N=np.array(times),
        item_N=np.unique(items, return_inverse=True)[1],
        type_N=np.full(len(lines), FIRST_ITEM_TOKEN),
        value_N=np.array(values),
    )


def simulator() -> Log:
    """Eight weeks of the simulated shop."""
    config = SimulationConfig(num_days=56, num_users=4000)
    events = Process.draw(config).simulate()
    return Log.sorted(
        FIRST_ITEM_TOKEN + config.profile.event_types.index("purchase"),
        user_N=events.user_N,
        session_N=events.session_N,
        time_N=events.time_N,
        item_N=events.item_N,
        type_N=events.event_type_N + FIRST_ITEM_TOKEN,
        value_N=events.value_N,
    )


LOGS: dict[str, Callable[[], Log]] = {"online-retail": online_retail, "simulator": simulator}


def follows(log: Log, users: Ints, asked_at: int, window: int) -> NDArray[np.bool_]:
    """Whether each user has a counted event in (asked_at, asked_at + window]."""
    inside = log.counts() & (log.time_N > asked_at) & (log.time_N <= asked_at + window)
    return np.isin(users, log.user_N[inside])


def recency_frequency_monetary(log: Log, asked_at: int) -> tuple[Ints, Floats]:
    """Every user seen by then, and: days since the last and the first visit, visits, total value."""
    known = log.time_N <= asked_at
    users, index = np.unique(log.user_N[known], return_inverse=True)
    last, first = np.zeros(len(users)), np.full(len(users), np.inf)
    np.maximum.at(last, index, log.time_N[known])
    np.minimum.at(first, index, log.time_N[known])
    pairs = np.unique(np.column_stack([index, log.session_N[known]]), axis=0)
    visits = np.bincount(pairs[:, 0], minlength=len(users))
    totals = np.bincount(index, np.nan_to_num(log.value_N[known]), minlength=len(users))
    return users, np.column_stack([(asked_at - last) / DAY, (asked_at - first) / DAY, visits, totals])


def rivals(log: Log, asked_at: int, window: int) -> dict[str, Floats]:
    """Their answers of all users seen by `asked_at`, taught by what was known then."""
    newest = asked_at - window - 1
    days = [newest - week * WEEK for week in range(200) if newest - week * WEEK > log.time_N.min() + WEEK]
    taught = []
    for day in days:
        users, numbers = recency_frequency_monetary(log, day)
        taught.append((numbers, follows(log, users, day, window)))
    numbers, labels = (np.concatenate(column) for column in zip(*taught, strict=True))
    _, asked = recency_frequency_monetary(log, asked_at)
    rfm = [0, 2, 3]
    by_newest = make_pipeline(StandardScaler(), LogisticRegression()).fit(np.log1p(taught[0][0][:, rfm]), taught[0][1])
    by_weeks = make_pipeline(StandardScaler(), LogisticRegression()).fit(np.log1p(numbers[:, rfm]), labels)
    trees = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, random_state=0).fit(numbers, labels)
    return {
        "logistic regression on RFM, newest day": by_newest.predict_proba(np.log1p(asked[:, rfm]))[:, 1],
        "logistic regression on RFM, all weeks": by_weeks.predict_proba(np.log1p(asked[:, rfm]))[:, 1],
        "boosted trees on RFM and tenure, all weeks": trees.predict_proba(asked)[:, 1],
    }


def steps_of(log: Log, token_of_item: Ints) -> pa.Table:
    """The history kernel's input."""
    ends = np.zeros(int(log.session_N.max()) + 1, np.int64)
    np.maximum.at(ends, log.session_N, log.time_N)
    micros = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "user_id": pa.array(log.user_N.astype(str)),
            "session_id": pa.array(log.session_N.astype(str)),
            "session_ended_at": pa.array(ends[log.session_N] * 1_000_000, micros),
            "event_time": pa.array(log.time_N * 1_000_000, micros),
            "token": pa.array(token_of_item[log.item_N], pa.int32()),
            "event_type": pa.array(log.type_N, pa.int32()),
            "value": pa.array(log.value_N, pa.float32(), mask=np.isnan(log.value_N)),
        }
    )


def ours(log: Log, asked_at: int, config: Config, folder: Path) -> tuple[Ints, Floats, float]:
    """Users seen by `asked_at` and the model's answers, taught by what was known then; and the seconds of training."""
    (outcome,) = config.model.outcomes
    known = log.before(asked_at + 1)
    counts = np.bincount(known.item_N, minlength=int(log.item_N.max()) + 1)
    frequent = np.flatnonzero(counts >= MIN_ITEM_COUNT)
    token_of_item = np.full(len(counts), UNKNOWN_TOKEN)
    token_of_item[frequent] = FIRST_ITEM_TOKEN + np.arange(len(frequent))
    steps = steps_of(known, token_of_item)
    until = (asked_at + 1) * 1_000_000
    types = None if log.event_type is None else frozenset({log.event_type})
    rules = OutcomeRules((OutcomeRule(types, round(outcome.within_days * DAY * 1_000_000)),), (until,) * 3)
    spans = split_spans(HistoryRules(config.sequences.max_tokens, config.sequences.burn_in_tokens, until, until))
    rows = pa.Table.from_batches(history_batches(steps.to_batches(), spans, outcomes=rules))
    file = folder / "training.parquet"
    pq.write_table(rows, file, row_group_size=512)
    job = TrainingJob(
        model_config=config.model,
        train_config=config.train,
        training=Snapshot((str(file),)),
        validation=Snapshot(()),
        num_tokens=FIRST_ITEM_TOKEN + len(frequent),
        num_event_types=int(log.type_N.max()) + 1,
        artifact_path=str(folder / "model"),
        work_dir=str(folder),
    )
    began = time.monotonic()
    result = train_rank(job, Ranks(0, 1, torch.device("cpu")), lambda progress: None)
    seconds = time.monotonic() - began
    save_manifest(job.artifact_path, result["files"])
    # The product keeps what stood before the newest events in user_memory: it answers from the whole history.
    whole = pa.Table.from_batches(history_batches(steps.to_batches(), whole_span))
    whole = whole.append_column("asked_at", pa.array(np.full(len(whole), asked_at)))
    answers = pa.Table.from_batches(foretell(iter(whole.to_batches()), job.artifact_path, 64))
    users = np.array(answers["user_id"].to_pylist(), dtype=np.int64)
    order = np.argsort(users)
    return users[order], answers["value"].to_numpy().astype(np.float64)[order], seconds


METRICS = {"AUC": roc_auc_score, "average precision": average_precision_score}


def intervals(
    label_U: NDArray[np.bool_], answers: dict[str, Floats], reference: str
) -> dict[str, dict[str, list[float]]]:
    """Each metric of each answer with its 95 % interval, and the interval of `reference` minus it, over resampled users."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(label_U), size=len(label_U)) for _ in range(NUM_RESAMPLES)]
    found: dict[str, dict[str, list[float]]] = {}
    for metric, measure in METRICS.items():
        resampled = {name: np.array([measure(label_U[d], score[d]) for d in draws]) for name, score in answers.items()}
        for name, score in answers.items():
            low, high = np.percentile(resampled[name], [2.5, 97.5])
            ahead = np.percentile(resampled[reference] - resampled[name], [2.5, 97.5])
            row = [float(measure(label_U, score)), float(low), float(high), *map(float, ahead)]
            found.setdefault(name, {})[metric] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", help="ask one window earlier; for the search of settings")
    parser.add_argument("--data", choices=list(LOGS), action="append", help="only this data set")
    parser.add_argument("--seeds", type=int, default=1, help="so many models, each of its own seed")
    parser.add_argument("overrides", nargs="*", help="settings, as key.path=value")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.data or list(LOGS):
        config = load(ROOT / "conf" / "quality" / f"outcomes-{name}.yaml", given.overrides)
        window = round(config.model.outcomes[0].within_days * DAY)
        log = LOGS[name]()
        # The last whole second whose window lies before the newest event.
        asked_at = int(log.time_N.max()) - window - 1 - (window if given.validate else 0)
        users, _ = recency_frequency_monetary(log, asked_at)
        label_U = follows(log, users, asked_at, window)
        answers: dict[str, Floats] = {}
        seconds = []
        for seed in range(1, given.seeds + 1):
            seeded = load(ROOT / "conf" / "quality" / f"outcomes-{name}.yaml", [*given.overrides, f"train.seed={seed}"])
            with tempfile.TemporaryDirectory() as folder:
                answered, answers[f"llm_spark, seed {seed}"], spent = ours(log, asked_at, seeded, Path(folder))
            assert np.array_equal(answered, users)
            seconds.append(spent)
        answers |= rivals(log.before(asked_at + 1), asked_at, window)
        found = intervals(label_U, answers, "llm_spark, seed 1")
        print(f"\n{name}: asked {datetime.fromtimestamp(asked_at, UTC):%Y-%m-%d %H:%M} of {len(users):,} users, "
              f"{label_U.mean():.3f} of them did; training took {statistics.mean(seconds):.0f} s")  # fmt: skip
        for metric in METRICS:
            print(f"{metric:<44}  value  95 % interval   seed 1 is ahead by")
            for row, metrics in found.items():
                value, low, high, ahead_low, ahead_high = metrics[metric]
                print(f"  {row:<42}  {value:.3f}  [{low:.3f}, {high:.3f}]  [{ahead_low:+.3f}, {ahead_high:+.3f}]")
            own = [metrics[metric][0] for row, metrics in found.items() if row.startswith("llm_spark")]
            if len(own) > 1:
                print(
                    f"  llm_spark, mean and sd of {len(own)} seeds: {statistics.mean(own):.4f} {statistics.stdev(own):.4f}"
                )
        facts = {"benchmark": f"quality/outcomes-{name}", "validate": given.validate, "train_seconds": seconds}
        print(json.dumps({**facts, "num_users": len(users), "share": float(label_U.mean()), "measured": found}))


if __name__ == "__main__":
    main()
