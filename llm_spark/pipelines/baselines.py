"""The baselines' ranks, each on its own: one that fails is named, and the others are measured all the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark import StorageLevel
from pyspark.sql import DataFrame

from llm_spark.evaluation.baselines import BASELINES
from llm_spark.logs import log
from llm_spark.pipelines.account import Account, Check

CHECK = "baseline_failed"
_COLUMNS = ("sequence_id", "user_id", "tokens", "session_starts", "event_times", "first_target")
_RAISED = re.compile(r"(?!org\.|java\.|py4j\.)[\w.]*(Error|Exception): ")


def baseline_ranks(
    names: Sequence[str],
    test_sequences: DataFrame,
    training_sequences: DataFrame,
    vocabulary: DataFrame,
    list_length: int,
    num_targets: int,
    account: Account,
) -> dict[str, DataFrame]:
    """The ranks of each named baseline that could be computed, persisted.

    Of each of the others there is one line of warning and one check of severity warning in `data_quality`.
    """
    if names and training_sequences.isEmpty():
        why_not = "the train split has no row to learn from: bring earlier events or move sequences.train_until"
        _leave_out(account, names, why_not)
        return {}
    # Each baseline reads them several times.
    test_rows, training_rows = (
        rows.select(*_COLUMNS).persist(StorageLevel.MEMORY_AND_DISK) for rows in (test_sequences, training_sequences)
    )
    computed = {}
    for name in names:
        ranks = None
        try:
            ranks = BASELINES[name](test_rows, training_rows, vocabulary, list_length)
            ranks = ranks.persist(StorageLevel.MEMORY_AND_DISK)
            num_ranked = ranks.count()
            if num_ranked != num_targets:
                raise RuntimeError(f"it ranked {num_ranked:,} of {num_targets:,} positions")
        # Whatever it is: a model must not wait for what it is only compared with.
        except Exception as error:
            if ranks is not None:
                ranks.unpersist()
            log.debug("baseline %s", name, exc_info=True)
            _leave_out(account, [name], _cause(error))
        else:
            computed[name] = ranks
    test_rows.unpersist()
    training_rows.unpersist()
    return computed


def _leave_out(account: Account, names: Sequence[str], why_not: str) -> None:
    what = f"baseline {names[0]} is" if len(names) == 1 else f"baselines {', '.join(names)} are"
    log.warning("the %s left out of the evaluation: %s", what, why_not)
    account.checks += [
        Check(CHECK, name, 1.0, 0.0, "warning", f"left out of the evaluation: {why_not}") for name in names
    ]


def _cause(error: Exception) -> str:
    """In one line: what was raised in the Python worker, where Spark hands its stack trace on; else the message's first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [type(error).__name__])[0][:300]
