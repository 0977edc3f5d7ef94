"""Quality on rsc15-100k: python -m tests.benchmarks.quality.rsc15 [--quick] [--seed N] [key=value ...]

Trains on all training sessions and ranks the next item at each of the 387 positions for which the rivals' lists are kept
(the first 99 test sessions), among all items. HR@20 and MRR@20; the rivals' figures are measured here, from their lists.
With --validate the newest tenth of the training sessions is held out and measured instead.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.quality.histories import Histories, Ints
from tests.benchmarks.quality.measures import bootstrap_interval, model_ranks, mrr, recall
from tests.benchmarks.quality.published_cuts import VALIDATION_SHARE, Split, Vocabulary
from tests.benchmarks.quality.training import arguments, report, require_data, train

NAME = "rsc15-100k"
RIVALS = {"GRU4Rec": "gru4rec", "V-SkNN": "vsknn", "SR": "sr", "AR": "ar"}
LIST_LENGTH = 20

Sessions = dict[int, list[int]]


@dataclass(frozen=True)
class RivalLists:
    """Recommendation lists of one rival, one a position: (session, position of the last item seen) -> items, best first."""

    lists: dict[tuple[int, int], list[int]]

    @classmethod
    def read(cls, path: Path) -> RivalLists:
        with path.open(newline="") as file:
            rows = csv.DictReader(file, delimiter=";")
            return cls(
                {
                    (int(row["SessionId"]), int(row["Position"])): [int(i) for i in row["Recommendations"].split(",")]
                    for row in rows
                }
            )

    def ranks(self, sessions: Sessions) -> Ints:
        """The rank of the item that followed each position; 0 where it is not on the list."""
        ranks = []
        for (session, position), items in self.lists.items():
            target = sessions[session][position + 1]
            ranks.append(items.index(target) + 1 if target in items else 0)
        return np.array(ranks, np.int64)


def read_sessions(path: Path) -> Sessions:
    """Items of each session in order of time, the sessions in the order in which they began."""
    with path.open(newline="") as file:
        events = [
            (float(row["Time"]), int(row["SessionId"]), int(row["ItemId"]))
            for row in csv.DictReader(file, delimiter="\t")
        ]
    sessions: Sessions = {}
    for _, session, item in sorted(events, key=lambda event: event[:2]):
        sessions.setdefault(session, []).append(item)
    return sessions


def split_of(training: list[list[int]], evaluation: list[list[int]]) -> Split:
    vocabulary = Vocabulary(training)
    return Split(
        vocabulary.num_tokens,
        Histories.of_sessions([vocabulary.tokens(session) for session in training]),
        Histories.of_sessions([vocabulary.tokens(session) for session in evaluation]),
    )


def main() -> None:
    given = arguments(NAME, __doc__)
    folder = require_data(NAME)
    training = list(read_sessions(folder / "yoochoose-clicks-100k_train_full.txt").values())
    tests = read_sessions(folder / "yoochoose-clicks-100k_test.txt")
    rivals = {name: RivalLists.read(folder / f"recoms_rsc15_100k_{short}.csv") for name, short in RIVALS.items()}
    compared = {session: tests[session] for session, _ in rivals["V-SkNN"].lists}
    if given.validate:
        num_training = round(len(training) * (1 - VALIDATION_SHARE))
        split = split_of(training[:num_training], training[num_training:])
    else:
        split = split_of(training, list(compared.values()))
    trained = train(
        given.config, split.training, split.evaluation if given.validate else None, split.num_tokens, oldest_first=True
    )
    ranks_P, session_P = model_ranks(trained.model, split.evaluation, given.config.evaluate.batch_rows)
    part = "validation" if given.validate else "test"
    rows = {f"llm_spark ({part})": ranks_P, **{name: rival.ranks(tests) for name, rival in rivals.items()}}
    report(
        NAME,
        ["HR@20", "MRR@20"],
        {name: [float(recall(of, 20).mean()), float(mrr(of, LIST_LENGTH).mean())] for name, of in rows.items()},
        part=part,
        seed=given.seed,
        num_targets=len(ranks_P),
        intervals={
            "HR@20": bootstrap_interval(recall(ranks_P, 20), session_P),
            "MRR@20": bootstrap_interval(mrr(ranks_P, 20), session_P),
        },
        steps=trained.fit.num_steps,
        best_step=trained.fit.best_step,
        train_seconds=round(trained.seconds),
    )


if __name__ == "__main__":
    main()
