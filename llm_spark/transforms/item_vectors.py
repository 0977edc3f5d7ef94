"""What Word2Vec learns item vectors from, and what is made of them before training.

Mikolov et al. 2013, "Distributed representations of words and phrases": skip-gram, with sessions for sentences and
items for words. Shape suffixes: I items with a vector, F numbers of a Word2Vec vector, E embedding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

Floats = NDArray[np.float64]


def session_words(training_sequences: DataFrame) -> DataFrame:
    """One row a session of two events or more, in a fixed order: `words`, its tokens as text.

    A row's burn-in stands in the row before it already and is left out; a session that a row's end cuts is two here.
    """
    first = F.when(F.col("first_target") <= 1, 0).otherwise(F.col("first_target"))
    ends = F.concat(F.expr("slice(session_starts, 2, size(session_starts))"), F.array(F.size("tokens")))
    bounds = F.arrays_zip(F.col("session_starts").alias("begin"), ends.alias("end"))
    sessions = training_sequences.select(
        "sequence_id", "tokens", first.alias("first"), F.posexplode(bounds).alias("place", "session")
    )
    begin = F.greatest("session.begin", "first")
    num_events = F.greatest(F.col("session.end") - begin, F.lit(0))
    words = F.slice("tokens", begin + 1, num_events).cast("array<string>")
    fresh_sessions = sessions.select("sequence_id", "place", words.alias("words")).where(F.size("words") > 1)
    return fresh_sessions.orderBy("sequence_id", "place").select("words")


def reduced(vectors_IF: Floats, size: int) -> Floats:
    """The vectors about their mean, in the `size` directions in which they vary most (principal components), [I, E].

    At F = `size` only the mean goes.
    """
    centred_IF = vectors_IF - vectors_IF.mean(axis=0)
    if vectors_IF.shape[1] == size:
        return centred_IF
    _, directions_FF = np.linalg.eigh(centred_IF.T @ centred_IF)
    reduced_IE: Floats = centred_IF @ directions_FF[:, ::-1][:, :size]
    return reduced_IE


def scaled(vectors_IE: Floats, deviation: float) -> Floats:
    """The vectors so that the root mean square of all their numbers is `deviation`; vectors of nothing but zeros stay."""
    found = float(np.sqrt(np.mean(np.square(vectors_IE)))) if vectors_IE.size else 0.0
    return vectors_IE * (deviation / found) if found else vectors_IE
