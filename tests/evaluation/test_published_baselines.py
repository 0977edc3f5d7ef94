"""rsc15-100k: the baselines reach the published order, and our V-SkNN's lists are the published ones, position by position."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from pyspark.sql import SparkSession

from llm_spark.evaluation.baselines import BASELINES
from tests.conftest import SHARED_DATA
from tests.evaluation.session_sequences import rsc15
from tests.rsc15_lists import NAME, NUM_POSITIONS, PUBLISHED, RivalLists

K = 20


@dataclass(frozen=True)
class Found:
    """One baseline's ranks and lists: by session and position of the last event seen."""

    ranks: Mapping[tuple[int, int], int | None]
    lists: Mapping[tuple[int, int], Sequence[int]]

    @property
    def hit_rate(self) -> float:
        return float(np.mean([rank is not None and rank <= K for rank in self.ranks.values()]))

    @property
    def mrr(self) -> float:
        return float(np.mean([1 / rank if rank is not None and rank <= K else 0.0 for rank in self.ranks.values()]))


@pytest.fixture(scope="module")
def published(spark: SparkSession) -> Callable[[str], Found]:
    """What the baseline of this name finds, from its own Spark job, run once."""
    folder = SHARED_DATA / NAME
    if not folder.is_dir():
        pytest.skip(f"the data set {NAME} is not beside this checkout (../shared/data)")
    given = rsc15(spark, folder)

    @functools.cache
    def found(name: str) -> Found:
        rows = BASELINES[name](given.tests, given.training, given.vocabulary, K).collect()
        places = {(int(row["sequence_id"]), row["position"] - 1): row for row in rows}
        assert len(places) == len(rows) == NUM_POSITIONS
        return Found(
            {place: row["rank"] for place, row in places.items()},
            {place: [given.item_of[token] for token in row["top"]] for place, row in places.items()},
        )

    return found


@pytest.mark.slow
def test_the_published_order_is_reached(published: Callable[[str], Found]) -> None:
    # As V-SkNN, AR, SR of the rivals: item-kNN counts pairs of a session as AR does, the Markov chain neighbours, as SR does first of all.
    by_name = {name: published(name) for name in ("vsknn", "item_knn", "markov", "popularity")}
    order = ["vsknn", "item_knn", "markov", "popularity"]
    assert sorted(order, key=lambda name: -by_name[name].hit_rate) == order
    assert by_name["vsknn"].mrr > max(by_name["item_knn"].mrr, by_name["markov"].mrr)
    assert min(by_name["item_knn"].mrr, by_name["markov"].mrr) > by_name["popularity"].mrr


def test_vsknn_has_the_published_quality_within_one_position_of_387(published: Callable[[str], Found]) -> None:
    hit_rate, mrr = PUBLISHED["V-SkNN"]
    assert published("vsknn").hit_rate == pytest.approx(hit_rate, abs=0.003)
    assert published("vsknn").mrr == pytest.approx(mrr, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "relative"), [("markov", "SR"), ("item_knn", "AR")])
def test_the_lists_of_items_have_about_the_quality_of_the_published_rules(
    published: Callable[[str], Found], name: str, relative: str
) -> None:
    # A relative, not the same: SR also counts pairs further apart than neighbours, AR does not divide by how common the items are.
    hit_rate, mrr = PUBLISHED[relative]
    assert published(name).hit_rate == pytest.approx(hit_rate, abs=0.03)
    assert published(name).mrr == pytest.approx(mrr, abs=0.02)


def test_vsknns_lists_are_the_published_ones_but_for_ties(published: Callable[[str], Found]) -> None:
    theirs = RivalLists.of("V-SkNN", SHARED_DATA / NAME).lists
    ours = published("vsknn").lists
    assert ours.keys() == theirs.keys()
    shared = {place: len(set(ours[place]) & set(theirs[place][:K])) / K for place in theirs}
    assert np.mean(list(shared.values())) > 0.95
    assert np.mean([ours[place][0] == theirs[place][0] for place in theirs]) > 0.95
