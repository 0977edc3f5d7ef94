"""What the baselines' transforms share: sessions and counts of the training rows, and the way of what was learned to the test rows."""

from __future__ import annotations

import functools

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from llm_spark.evaluation.baselines.ranking_kernel import ITEMS, LEARNED, RANKS_DDL, TEST, Build, rank_batches
from llm_spark.tokens import FIRST_ITEM_TOKEN

_BLOCK_TOKENS = 65_536
"""Tokens of the vocabulary that travel in one row."""

_KERNEL_COLUMNS = (
    "kind",
    "ended_at",
    "sequence_id",
    "start",
    "user_id",
    "tokens",
    "session_starts",
    "numbers",
    "more_numbers",
)


def training_sessions(training_sequences: DataFrame) -> DataFrame:
    """One row a session that a training row predicts anything of: sequence_id, start (its offset in the row), ended_at (epoch s), tokens.

    Of a session whose beginning the row has as context only the last event before the first predicted one is taken. Events whose item the
    vocabulary lacked are passed over.
    """
    first_target, starts = F.col("first_target"), F.col("session_starts")

    def session(start: Column, place: Column) -> Column:
        end = F.coalesce(F.get(starts, place + 1), F.size("tokens"))
        begin = F.greatest(start, first_target - 1)
        events = F.slice("tokens", begin + 1, F.greatest(end - begin, F.lit(0)))
        return F.struct(
            start.alias("start"),
            end.alias("end"),
            F.get(F.col("event_times"), end - 1).alias("ended_at"),
            F.filter(events, lambda token: token >= FIRST_ITEM_TOKEN).alias("tokens"),
        )

    predicted = F.filter(F.transform(starts, session), lambda each: each["end"] > first_target)
    each = training_sequences.select("sequence_id", F.explode(predicted).alias("session"))
    sessions = each.select("sequence_id", "session.start", "session.ended_at", "session.tokens")
    return sessions.where(F.size("tokens") > 0)


def predicted_events(training_sequences: DataFrame) -> DataFrame:
    """token, event_time (epoch s) of every event that a training row predicts; what stands before is predicted in another row."""
    events = F.arrays_zip(F.col("tokens").alias("token"), F.col("event_times").alias("event_time"))
    predicted = F.slice(events, F.col("first_target") + 1, F.size("tokens"))
    return training_sequences.select(F.explode(predicted).alias("event")).select("event.token", "event.event_time")


def item_counts(training_sequences: DataFrame, vocabulary: DataFrame) -> DataFrame:
    """token, num_events: how often training predicts each item of the vocabulary, 0 included."""
    # Only what a row predicts: its context was predicted in another row.
    predicted = F.slice("tokens", F.col("first_target") + 1, F.size("tokens"))
    tokens = training_sequences.select(F.explode(predicted).alias("token"))
    counts = tokens.groupBy("token").agg(F.count("*").alias("num_events"))
    return vocabulary.select("token").join(counts, "token", "left").fillna(0, ["num_events"])


def ranked(
    test_sequences: DataFrame, items: DataFrame, learned: DataFrame | None, build: Build, list_length: int
) -> DataFrame:
    """The ranks of every predicted position (RANKS_DDL): test rows, and beside each part of them what the baseline learned for it.

    `items` has token, number and, where wanted, more_number of every item of the vocabulary. `learned` has an `item` for which its rows are
    of use; a part gets those of the items in its queries. Its other columns are of _KERNEL_COLUMNS.
    """
    num_parts = int(test_sequences.sparkSession.conf.get("spark.sql.shuffle.partitions") or 1)
    part = F.pmod(F.xxhash64("sequence_id"), F.lit(num_parts)).cast("int").alias("part")
    test_rows = test_sequences.select(
        part,
        F.lit(TEST).alias("kind"),
        "sequence_id",
        F.col("first_target").alias("start"),
        "user_id",
        "tokens",
        "session_starts",
    )
    parts = test_sequences.sparkSession.range(num_parts).select(F.col("id").cast("int").alias("part"))
    rows = test_rows.unionByName(
        parts.crossJoin(_blocks(items)).withColumn("kind", F.lit(ITEMS)), allowMissingColumns=True
    )
    if learned is not None:
        queried = test_sequences.select(part, F.explode(_queried_tokens()).alias("item")).distinct()
        for_part = queried.join(learned, "item", "inner").drop("item").withColumn("kind", F.lit(LEARNED))
        rows = rows.unionByName(for_part, allowMissingColumns=True)
    missing = {
        name: F.lit(None).cast(kind)
        for name, kind in (("ended_at", "bigint"), ("numbers", "array<double>"), ("more_numbers", "array<double>"))
        if name not in rows.columns
    }
    by_part = rows.withColumns(missing).repartitionById(num_parts, "part")
    in_order = by_part.sortWithinPartitions("kind", "ended_at", "sequence_id", "start").select(*_KERNEL_COLUMNS)
    return in_order.mapInArrow(functools.partial(rank_batches, build=build, list_length=list_length), RANKS_DDL)


def _blocks(items: DataFrame) -> DataFrame:
    """Rows of tokens, numbers, more_numbers, each a block of the vocabulary."""
    more = F.col("more_number") if "more_number" in items.columns else F.lit(0.0)
    item = F.struct("token", F.col("number").cast("double").alias("number"), more.cast("double").alias("more_number"))
    blocks = items.groupBy(F.floor(F.col("token") / _BLOCK_TOKENS).alias("block")).agg(F.collect_list(item).alias("i"))
    return blocks.select(
        F.col("i.token").alias("tokens"),
        F.col("i.number").alias("numbers"),
        F.col("i.more_number").alias("more_numbers"),
    )


def _queried_tokens() -> Column:
    """The different tokens of a test row from the session on before that of its first target."""
    begun = F.filter("session_starts", lambda start: start <= F.col("first_target"))
    begin = F.element_at(begun, F.greatest(F.size(begun) - 1, F.lit(1)))
    return F.array_distinct(F.slice("tokens", begin + 1, F.size("tokens")))
