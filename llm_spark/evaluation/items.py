"""What metrics of recommended lists need to know of the items: how popular each was in training, and its category.

Shape suffixes: V tokens, padding and unknown included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_spark.tokens import FIRST_ITEM_TOKEN

NUM_DECILES = 10


@dataclass(frozen=True)
class Items:
    """One number a token in every array; what is no item of the vocabulary has 0."""

    num_items: int
    self_information_V: NDArray[np.float64]
    """-log2 of the item's share of the training targets, in bits; one that training never predicts counts as predicted once."""
    percentile_V: NDArray[np.float64]
    """Share of the items that are less popular, half of those that are as popular included: 0 to 1."""
    decile_V: NDArray[np.int64]
    """1 (the least popular tenth of the items) to 10; items that are equally popular share one."""
    category_V: NDArray[np.int64] | None = None
    """A code from 1, 0 where none is known; None where categories are not asked for."""

    @classmethod
    def counted(
        cls, tokens: NDArray[np.int64], num_events: NDArray[np.int64], categories: NDArray[np.int64] | None = None
    ) -> Items:
        """From each item's token, how often training predicts it, and its category's code; any order."""
        if not len(tokens):
            raise ValueError("there is no item to recommend")
        size = max(int(tokens.max()) + 1, FIRST_ITEM_TOKEN)
        num_items = len(tokens)
        counts = np.sort(num_events)
        num_below = np.searchsorted(counts, num_events, side="left")
        num_up_to = np.searchsorted(counts, num_events, side="right")
        percentiles = (num_below + num_up_to) / (2 * num_items)
        at_least_once = np.maximum(num_events, 1)
        bits = np.log2(max(1, int(num_events.sum()))) - np.log2(at_least_once)
        return cls(
            num_items,
            _by_token(size, tokens, bits),
            _by_token(size, tokens, percentiles),
            _by_token(size, tokens, np.minimum(np.floor(NUM_DECILES * percentiles) + 1, NUM_DECILES)).astype(np.int64),
            None if categories is None else _by_token(size, tokens, categories).astype(np.int64),
        )

    @property
    def num_tokens(self) -> int:
        return len(self.percentile_V)


def _by_token(size: int, tokens: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    placed = np.zeros(size)
    placed[tokens] = values
    return placed
