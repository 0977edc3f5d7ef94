"""Recommenders without a model, ranked on the same positions and among the same items as the model.

Each is one function of DataFrames, lazy:

    ranks = BASELINES["vsknn"](test_sequences, training_sequences, vocabulary, list_length)

In: `test_sequences` and `training_sequences` are rows of schemas.SEQUENCES (sequence_id, user_id, tokens, session_starts, event_times,
first_target), `vocabulary` has the tokens that may be recommended. Out, one row a position that the test sequences predict: sequence_id,
user_id, position (in the row), session_position, token (the true item), rank, top.

What they have in common:

- **Order.** Items that a baseline scores come first, the higher score before the lower, and of equals the more popular. All others follow by
  popularity (for `recency`, by recent popularity). So every item of the vocabulary has its place. Items equal in all of it are a tie, and
  a tie counts against the baseline: `rank` is the number of items that are at least as good as the true one, itself included. It is null
  where the true item is not in the vocabulary. `top` has the first `list_length` items, ties by token.
- **What is learned.** Popularity counts what the training rows predict: what stands before `first_target` is predicted in another row.
  Sessions are taken likewise, each with the event before its first predicted one where that is of the same session, so that every
  pair of neighbours counts once. A session that is cut between two rows counts as two that share the event at the cut.
- **What is known at a position.** The row's events before it. Events whose item the vocabulary lacked (code 1) are passed over. `markov`,
  `item_knn` and `vsknn` look at the current session; before its first known event the session before it stands in, and without that either
  they fall back on popularity.
- **Size.** Test rows are dealt to as many parts as spark.sql.shuffle.partitions says. A worker holds one part's share of what was learned:
  the vocabulary's popularity, and for the items in the part's own sessions a bounded list each (MAX_NEIGHBOURS, VsknnSettings.sample_size).
  More partitions make it smaller. The test rows stream through.
"""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import DataFrame

from llm_spark.evaluation.baselines.item_lists import item_knn, markov
from llm_spark.evaluation.baselines.simple import popularity, recency, session_popularity
from llm_spark.evaluation.baselines.vsknn import vsknn

Baseline = Callable[[DataFrame, DataFrame, DataFrame, int], DataFrame]

BASELINES: dict[str, Baseline] = {
    "popularity": popularity,
    "session_popularity": session_popularity,
    "recency": recency,
    "markov": markov,
    "vsknn": vsknn,
    "item_knn": item_knn,
}
