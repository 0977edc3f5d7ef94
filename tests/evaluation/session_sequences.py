"""Sessions of published data sets as rows of sequences, one session a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from llm_spark.tokens import FIRST_ITEM_TOKEN, UNKNOWN_TOKEN
from tests.rsc15_lists import TEST_FILE, TRAINING_FILE, RivalLists, read_sessions


@dataclass(frozen=True)
class SessionSequences:
    """What a baseline is given, and the item of each token."""

    tests: DataFrame
    training: DataFrame
    vocabulary: DataFrame
    item_of: Mapping[int, int]


def session_sequences(
    spark: SparkSession,
    training: Mapping[str, Sequence[int]],
    tests: Mapping[str, Sequence[int]],
    only_last: bool = False,
) -> SessionSequences:
    """`training` oldest first: its order is its time. Predicted is all but a test's first item, or its last item alone."""
    item_of = dict(enumerate(sorted({item for session in training.values() for item in session}), FIRST_ITEM_TOKEN))
    token_of = {item: token for token, item in item_of.items()}

    def rows(sessions: Mapping[str, Sequence[int]], only_last: bool) -> DataFrame:
        columns = {
            "sequence_id": list(sessions),
            "user_id": list(sessions),
            "tokens": pa.array(
                [[token_of.get(item, UNKNOWN_TOKEN) for item in items] for items in sessions.values()],
                pa.list_(pa.int32()),
            ),
            "session_starts": pa.array([[0]] * len(sessions), pa.list_(pa.int32())),
            "event_times": pa.array([[n] * len(s) for n, s in enumerate(sessions.values())], pa.list_(pa.int64())),
            "first_target": pa.array([len(s) - 1 if only_last else 1 for s in sessions.values()], pa.int32()),
        }
        return spark.createDataFrame(pa.table(columns)).repartition(2)

    vocabulary = spark.createDataFrame(pa.table({"token": pa.array(list(item_of), pa.int32())}))
    return SessionSequences(rows(tests, only_last), rows(training, False), vocabulary, item_of)


def rsc15(spark: SparkSession, folder: Path) -> SessionSequences:
    """All training sessions in the order of their last events; of the test sessions those for which the rivals' lists are kept."""
    training, tests = read_sessions(folder / TRAINING_FILE), read_sessions(folder / TEST_FILE)
    compared = dict.fromkeys(session for session, _ in RivalLists.of("V-SkNN", folder).lists)
    ends: dict[int, float] = {}
    with (folder / TRAINING_FILE).open() as file:
        next(file)
        for line in file:
            session, _, at = line.split()
            ends[int(session)] = max(ends.get(int(session), 0.0), float(at))
    oldest_first = sorted(ends, key=lambda session: (ends[session], session))
    return session_sequences(
        spark,
        {str(session): training[session] for session in oldest_first},
        {str(session): tests[session] for session in compared},
    )
