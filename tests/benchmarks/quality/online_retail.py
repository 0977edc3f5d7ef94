"""Long-term memory on online-retail: python -m tests.benchmarks.quality.online_retail [--quick] [--seed N] [key=value ...]

A session is an invoice, users are known, the data are cut by time. The same model is trained with its long-term memory and
without it, and both rank every item of the invoices after the cut among all items, beside popularity and a first-order
Markov chain. Intervals are bootstrapped over users; so is the difference that the memory makes on the same positions.
With --validate the part before the test is measured instead.
"""

from __future__ import annotations

import calendar
import csv
import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_spark.tokens import FIRST_ITEM_TOKEN
from tests.benchmarks.quality.measures import bootstrap_interval, model_ranks, mrr, ndcg, recall
from tests.benchmarks.quality.training import Trained, arguments, report, require_data, train
from tests.benchmarks.quality.users import Targets, User, Windows, markov_ranks, popularity_ranks, windows

NAME = "online-retail"
VALIDATION_FROM, TEST_FROM = "2011-10-18", "2011-11-01"
"""Invoices from these days on are validation's and test's. The test's five weeks hold a fifth of the lines."""
TARGET_TOKENS, CONTEXT_TOKENS = 256, 256
"""Sizes of a row: a user's longer history is cut into several, each with what came before it as a burn-in."""


@dataclass(frozen=True)
class Invoices:
    """Purchases of known customers, without cancellations."""

    users: list[User]
    num_tokens: int

    @classmethod
    def read(cls, folder: Path, train_until_seconds: int) -> Invoices:
        """Codes that differ only in case are one item; a line that repeats an item of its invoice is left out.

        Items are those that were bought before `train_until_seconds`; others are the unknown token.
        """
        lines: dict[str, dict[tuple[int, str], dict[str, None]]] = {}
        for path in sorted(folder.glob("*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row["CustomerID"] and not row["InvoiceNo"].startswith("C") and int(row["Quantity"]) > 0:
                        seconds = _epoch_seconds(row["InvoiceDate"])
                        invoice = lines.setdefault(row["CustomerID"], {}).setdefault((seconds, row["InvoiceNo"]), {})
                        invoice[row["StockCode"].upper()] = None
        known = sorted(
            {
                item
                for invoices in lines.values()
                for (seconds, _), items in invoices.items()
                if seconds < train_until_seconds
                for item in items
            }
        )
        token_of = {item: token for token, item in enumerate(known, FIRST_ITEM_TOKEN)}
        users = []
        for invoices in lines.values():
            in_order = sorted(invoices.items(), key=lambda entry: entry[0])
            lengths = [len(items) for _, items in in_order]
            users.append(
                User(
                    tokens_N=np.array([token_of.get(item, 1) for _, items in in_order for item in items], np.int64),
                    event_times_N=np.repeat([seconds for (seconds, _), _ in in_order], lengths),
                    session_starts_S=np.cumsum([0, *lengths[:-1]]),
                )
            )
        return cls(users, FIRST_ITEM_TOKEN + len(known))


def _epoch_seconds(text: str) -> int:
    return calendar.timegm(datetime.datetime.fromisoformat(text).timetuple())


def main() -> None:
    given = arguments(NAME, __doc__)
    validation_from, test_from = _epoch_seconds(VALIDATION_FROM), _epoch_seconds(TEST_FROM)
    end = _epoch_seconds("2012-01-01")
    data = Invoices.read(require_data(NAME) / "by-day", validation_from)

    def rows(begin: int, until: int) -> Windows:
        return windows(data.users, begin, until, TARGET_TOKENS, CONTEXT_TOKENS)

    training, validation = rows(0, validation_from), rows(validation_from, test_from)
    evaluation = validation if given.validate else rows(test_from, end)
    train_targets, targets = Targets.of(training.histories), Targets.of(evaluation.histories)
    user_P = evaluation.user_B[targets.row_P]
    ranks = {
        "popularity": popularity_ranks(train_targets, targets, data.num_tokens),
        "first-order Markov": markov_ranks(train_targets, targets, data.num_tokens),
    }
    trained: dict[str, Trained] = {}
    for name, memory_size in (("memory on", given.config.model.memory_size), ("memory off", 0)):
        config = dataclasses.replace(
            given.config, model=dataclasses.replace(given.config.model, memory_size=memory_size)
        )
        trained[name] = train(config, training.histories, validation.histories, data.num_tokens)
        ranks_P, row_P = model_ranks(trained[name].model, evaluation.histories, config.evaluate.batch_rows)
        in_order = np.argsort(row_P, kind="stable")  # the model's batches come longest first, the targets row by row
        ranks[name] = ranks_P[in_order]
    metrics = {"Recall@20": recall, "MRR@20": mrr, "NDCG@20": ndcg}
    intervals = {
        name: {metric: bootstrap_interval(gain(of, 20), user_P) for metric, gain in metrics.items()}
        for name, of in ranks.items()
    }
    difference = {
        metric: [
            float((gain(ranks["memory on"], 20) - gain(ranks["memory off"], 20)).mean()),
            *bootstrap_interval(gain(ranks["memory on"], 20) - gain(ranks["memory off"], 20), user_P),
        ]
        for metric, gain in metrics.items()
    }
    begins_P = targets.previous_P < 0
    report(
        NAME,
        list(metrics),
        {name: [float(gain(of, 20).mean()) for gain in metrics.values()] for name, of in ranks.items()},
        part="validation" if given.validate else "test",
        seed=given.seed,
        num_targets=len(user_P),
        num_users=len(np.unique(user_P)),
        intervals=intervals,
        memory_on_minus_off=difference,
        recall_at_first_item={
            name: [
                float(recall(of, 20)[begins_P].mean()),
                *bootstrap_interval(recall(of, 20)[begins_P], user_P[begins_P]),
            ]
            for name, of in ranks.items()
        },
        best_steps={name: of.fit.best_step for name, of in trained.items()},
        steps={name: of.fit.num_steps for name, of in trained.items()},
        train_seconds={name: round(of.seconds) for name, of in trained.items()},
    )


if __name__ == "__main__":
    main()
