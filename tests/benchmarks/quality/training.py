"""Train the product's model by the product's loop on histories in memory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_spark.config import Config, load
from llm_spark.model.network import NextEventModel
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Progress
from llm_spark.training.loop import FitResult, Trainer
from tests.benchmarks.quality.histories import NUM_EVENT_TYPES, Histories, InMemorySource

ROOT = Path(__file__).resolve().parents[3]
SHARED_DATA = ROOT.parent / "shared" / "data"
"""Where the published cuts lie: beside the repository, never in it."""


@dataclass(frozen=True)
class Arguments:
    """What every script of this folder takes."""

    seed: int
    quick: bool
    validate: bool
    config: Config
    sizes: dict[str, int]
    """The script's own options."""


def arguments(name: str, document: str | None, **sizes: int) -> Arguments:
    """Parse the command line and load `conf/quality/NAME.yaml` under its `key=value` overrides. `sizes` are further options, with what
    they are where they are not given.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of an epoch, to see that everything runs")
    parser.add_argument("--validate", action="store_true", help="measure on the validation part; for the search")
    parser.add_argument("--seed", type=int, default=1)
    for size, default in sizes.items():
        parser.add_argument(f"--{size}", type=int, default=default)
    parser.add_argument("overrides", nargs="*", help="settings, as key.path=value")
    given = parser.parse_args()
    overrides = [*given.overrides, *(["train.num_epochs=0.05"] if given.quick else []), f"train.seed={given.seed}"]
    config = load(ROOT / "conf" / "quality" / f"{name}.yaml", overrides)
    torch.set_num_threads(1)
    return Arguments(given.seed, given.quick, given.validate, config, {size: getattr(given, size) for size in sizes})


def require_data(name: str) -> Path:
    """The folder of a published cut. Ends the program with a line where it is missing."""
    folder = SHARED_DATA / name
    if not folder.is_dir():
        sys.exit(f"no data at '{folder}': this benchmark needs the published cut '{name}' there")
    return folder


@dataclass(frozen=True)
class Trained:
    """A trained model and what it cost."""

    model: NextEventModel
    fit: FitResult
    seconds: float


def train(
    config: Config,
    training: Histories,
    validation: Histories | None,
    num_tokens: int,
    oldest_first: bool = False,
) -> Trained:
    """Fit the model of `config`. With `validation` the best epoch's weights are kept, without it the last ones."""
    source = InMemorySource(training, validation, config.train.batch_rows, config.train.seed, oldest_first)
    target_counts_V = training.target_counts(num_tokens)
    torch.manual_seed(config.train.seed)
    model = NextEventModel(config.model, num_tokens, NUM_EVENT_TYPES)
    model.begin_at_popularity(target_counts_V)
    began = time.monotonic()
    reporter = _Reporter()
    trainer = Trainer(model, config.train, source, Ranks(0, 1, torch.device("cpu")), target_counts_V, reporter)
    fit = trainer.fit()
    for metric in fit.metrics:
        if metric.name in ("validation_loss", "validation_recall_at_20", "epoch_loss"):
            print(f"step {metric.step} {metric.name} {metric.value:.4f}")
    return Trained(model, fit, time.monotonic() - began)


class _Reporter:
    """One line every minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress | None) -> None:
        if progress is None or time.monotonic() - self._last < 60:
            return
        self._last = time.monotonic()
        print(
            f"step {progress.step} of {progress.num_steps}, epoch {progress.epoch}, loss {progress.loss:.3f}, "
            f"{progress.tokens_per_second:,.0f} tokens/s, {progress.seconds_left:,.0f} s left",
            flush=True,
        )


def report(name: str, columns: list[str], rows: dict[str, list[float]], **facts: Any) -> None:
    """Print a table, ours beside the published ones, and one JSON line."""
    width = max(len(row) for row in rows)
    print(f"{name:<{width}}  " + "  ".join(f"{column:>12}" for column in columns))
    for row, values in rows.items():
        print(f"{row:<{width}}  " + "  ".join(f"{value:>12.4f}" for value in values))
    table = {row: dict(zip(columns, values, strict=True)) for row, values in rows.items()}
    print(json.dumps({"benchmark": f"quality/{name}", "measured": table, **facts}))
