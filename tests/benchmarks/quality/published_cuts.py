"""Read the published cuts as histories of tokens. Items are numbered in the order of their first appearance in training.

Items that training does not hold are the unknown token: the model may meet them, and never names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_spark.tokens import FIRST_ITEM_TOKEN, UNKNOWN_TOKEN
from tests.benchmarks.quality.histories import Histories

VALIDATION_SHARE = 0.1
"""Of the sessions without a validation part of their own: the last ones, which lie nearest to the test."""


class Vocabulary:
    """Tokens of the items of `sessions`; others are unknown."""

    def __init__(self, sessions: Iterable[Sequence[int]]) -> None:
        self._token_of = {
            item: token
            for token, item in enumerate(
                dict.fromkeys(item for session in sessions for item in session), FIRST_ITEM_TOKEN
            )
        }

    @property
    def num_tokens(self) -> int:
        return FIRST_ITEM_TOKEN + len(self._token_of)

    def tokens(self, items: Sequence[int]) -> list[int]:
        return [self._token_of.get(item, UNKNOWN_TOKEN) for item in items]


@dataclass(frozen=True)
class Split:
    """What a model is trained on and measured on."""

    num_tokens: int
    training: Histories
    evaluation: Histories


@dataclass(frozen=True)
class Yoochoose:
    """The 1/64 cut: sessions of unknown users in order of time, and test prefixes with the item that followed each."""

    sessions: list[list[int]]
    prefixes: list[list[int]]
    labels: list[int]

    @classmethod
    def read(cls, folder: Path) -> Yoochoose:
        sessions = [_integers(line) for line in _lines(folder / "train_sessions.txt")]
        tests = [line.split("\t") for line in _lines(folder / "test_prefix_label.tsv")]
        return cls(sessions, [_integers(prefix) for prefix, _ in tests], [int(label) for _, label in tests])

    def test_split(self) -> Split:
        """All training sessions; the last token of each test prefix is its target."""
        return self._split(
            self.sessions, [[*prefix, label] for prefix, label in zip(self.prefixes, self.labels, strict=True)], True
        )

    def validation_split(self) -> Split:
        """The last tenth of the training sessions stands in for the test: all of their items but the first are targets."""
        num_training = round(len(self.sessions) * (1 - VALIDATION_SHARE))
        return self._split(self.sessions[:num_training], self.sessions[num_training:], False)

    @staticmethod
    def _split(training: list[list[int]], evaluation: list[list[int]], only_last: bool) -> Split:
        vocabulary = Vocabulary(training)
        rows = [vocabulary.tokens(session) for session in evaluation]
        return Split(
            vocabulary.num_tokens,
            Histories.of_sessions([vocabulary.tokens(session) for session in training]),
            Histories.of_sessions(rows, [len(row) - 1 for row in rows] if only_last else None),
        )


@dataclass(frozen=True)
class Beauty:
    """Amazon Beauty, 5-core: each user's items, oldest first. The last is the test's, the one before is validation's."""

    users: list[list[int]]

    @classmethod
    def read(cls, folder: Path) -> Beauty:
        return cls([_integers(line)[1:] for line in _lines(folder / "Beauty.txt")])

    @property
    def num_items(self) -> int:
        """All items of the data, as published: also those that stand in the test alone are candidates."""
        return max(item for items in self.users for item in items)

    @property
    def num_tokens(self) -> int:
        return FIRST_ITEM_TOKEN + self.num_items

    def training(self) -> Histories:
        """Without each user's last two items."""
        return self._histories([items[:-2] for items in self.users], False)

    def validation(self) -> Histories:
        """The item before the last, given those before it."""
        return self._histories([items[:-1] for items in self.users], True)

    def test(self) -> Histories:
        """The last item, given all before it."""
        return self._histories(self.users, True)

    @staticmethod
    def _histories(rows: list[list[int]], only_last: bool) -> Histories:
        tokens = [[item + FIRST_ITEM_TOKEN - 1 for item in items] for items in rows]
        return Histories.of_sessions(tokens, [len(row) - 1 for row in tokens] if only_last else None)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split()]
