"""rsc15-100k as it was published: the sessions, and the lists that four rivals recommended at 387 positions of them.

Lists are kept for the first 99 test sessions, 50 items at each position. What was published with them, on these positions: HR@20 and MRR@20.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAME = "rsc15-100k"
TRAINING_FILE = "yoochoose-clicks-100k_train_full.txt"
TEST_FILE = "yoochoose-clicks-100k_test.txt"
RIVALS = {"GRU4Rec": "gru4rec", "V-SkNN": "vsknn", "SR": "sr", "AR": "ar"}
PUBLISHED = {
    "GRU4Rec": (0.571, 0.329),
    "V-SkNN": (0.610, 0.334),
    "SR": (0.561, 0.328),
    "AR": (0.592, 0.316),
}
"""HR@20 and MRR@20, to three places."""
NUM_POSITIONS = 387

Sessions = dict[int, list[int]]


@dataclass(frozen=True)
class RivalLists:
    """Recommendation lists of one rival, one a position: (session, position of the last item seen) -> items, best first."""

    lists: dict[tuple[int, int], list[int]]

    @classmethod
    def of(cls, rival: str, folder: Path) -> RivalLists:
        """`rival` is a name of RIVALS, `folder` the one of the data set."""
        return cls.read(folder / f"recoms_rsc15_100k_{RIVALS[rival]}.csv")

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

    def ranks(self, sessions: Sessions) -> NDArray[np.int64]:
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
