"""Ranking metrics against numpy."""

from __future__ import annotations

import numpy as np
from pyspark.sql import SparkSession

from llm_spark.evaluation.metrics import ranking_metrics


def test_metrics_equal_an_independent_computation_in_numpy(spark: SparkSession) -> None:
    random = np.random.default_rng(3)
    users = random.integers(0, 30, 400)
    ranks = random.integers(1, 40, 400).astype(float)
    ranks[random.random(400) < 0.1] = np.nan
    places = random.integers(0, 3, 400)
    rows = [(f"u{u}", int(p), None if np.isnan(r) else int(r)) for u, p, r in zip(users, places, ranks, strict=True)]
    frame = spark.createDataFrame(rows, "user_id string, session_position int, rank int")
    found = {(row["slice"], row["name"]): row for row in ranking_metrics(frame, [5, 20]).collect()}
    ranks = np.nan_to_num(ranks, nan=np.inf)
    for name, chosen in {"all": places >= 0, "first_in_session": places == 0, "within_session": places > 0}.items():
        of_slice, of_user = ranks[chosen], users[chosen]
        for k in (5, 20):
            hit = of_slice <= k
            gains = {"recall": hit * 1.0, "mrr": hit / of_slice, "ndcg": hit / np.log2(1 + of_slice)}
            for metric, gain in gains.items():
                row = found[name, f"{metric}@{k}"]
                np.testing.assert_allclose(row["value"], gain.mean(), rtol=1e-12)
                by_user = [(gain[of_user == u].sum() - gain.mean() * (of_user == u).sum()) for u in np.unique(of_user)]
                half = 1.959963984540054 * np.sqrt(np.square(by_user).sum()) / len(gain)
                np.testing.assert_allclose(
                    [row["ci_low"], row["ci_high"]], [max(0, gain.mean() - half), gain.mean() + half], rtol=1e-9
                )
                assert row["num_examples"] == chosen.sum()
        np.testing.assert_allclose(found[name, "accuracy"]["value"], (of_slice == 1).mean())


def test_one_user_alone_has_no_interval(spark: SparkSession) -> None:
    frame = spark.createDataFrame([("u", 0, 1), ("u", 1, 2)], "user_id string, session_position int, rank int")
    assert {(row["ci_low"], row["ci_high"]) for row in ranking_metrics(frame, [1]).collect()} == {(None, None)}
