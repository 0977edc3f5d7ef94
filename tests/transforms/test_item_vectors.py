from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import SparkSession

from llm_spark.transforms.item_vectors import reduced, scaled, session_words

COLUMNS = "sequence_id string, tokens array<int>, session_starts array<int>, first_target int"


def words_of(spark: SparkSession, *rows: tuple) -> list[list[str]]:
    return [row["words"] for row in session_words(spark.createDataFrame(list(rows), COLUMNS)).collect()]


def test_each_session_of_two_events_or_more_is_a_sentence_in_a_fixed_order(spark: SparkSession) -> None:
    rows = [("b", [9, 8, 7, 6, 5], [0, 2, 3], 1), ("a", [2, 3, 2], [0], 1)]
    expected = [["2", "3", "2"], ["9", "8"], ["6", "5"]]
    assert words_of(spark, *rows) == expected
    assert words_of(spark, *rows[::-1]) == expected


def test_what_a_row_repeats_of_the_row_before_it_is_left_out(spark: SparkSession) -> None:
    # Burn-in up to position 3: the first session is all of it, the second's first event too.
    assert words_of(spark, ("a", [2, 3, 4, 5, 6, 7], [0, 2, 5], 3)) == [["5", "6"]]


def test_principal_components_are_those_of_a_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 7)) * [9, 1, 5, 1, 3, 1, 1]
    found = reduced(vectors, 3)
    left, deviations, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = left[:, :3] * deviations[:3]
    for column in range(3):  # a direction's sign is open
        same = min(np.abs(found[:, column] - sign * expected[:, column]).max() for sign in (1, -1))
        assert same < 1e-9


def test_without_reduction_only_the_mean_goes() -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 6.0]])
    np.testing.assert_allclose(reduced(vectors, 2), [[-1.0, -2.0], [1.0, 2.0]])


@pytest.mark.parametrize("num_items", [1, 3])
def test_few_items_still_have_vectors_of_the_size_asked_for(num_items: int) -> None:
    found = reduced(np.random.default_rng(0).normal(size=(num_items, 8)), 5)
    assert found.shape == (num_items, 5)
    assert np.isfinite(found).all()


def test_vectors_are_scaled_to_the_deviation_and_nothing_stays_nothing() -> None:
    found = scaled(np.random.default_rng(0).normal(size=(50, 4)), 0.5)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.5)
    np.testing.assert_array_equal(scaled(np.zeros((2, 3)), 0.5), np.zeros((2, 3)))
    assert scaled(np.zeros((0, 3)), 0.5).shape == (0, 3)
