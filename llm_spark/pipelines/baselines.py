"""The baselines, each measured on its own: one that fails is named, and the others are measured all the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark import StorageLevel

from llm_spark.evaluation.baselines import BASELINES
from llm_spark.evaluation.estimates import Measured
from llm_spark.logs import log, progress
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.evaluation_window import EvaluationWindow

CHECK = "baseline_failed"
_COLUMNS = ("sequence_id", "user_id", "tokens", "session_starts", "event_times", "first_target")
_RAISED = re.compile(r"(?!org\.|java\.|py4j\.)[\w.]*(Error|Exception): ")


def measured_baselines(window: EvaluationWindow, names: Sequence[str], account: Account) -> dict[str, Measured]:
    """Each named baseline that could be measured on the window's positions.

    Of each of the others there is one line of warning and one check of severity warning in `data_quality`.
    """
    if names and window.training.isEmpty():
        why_not = "the train split has no row to learn from: bring earlier events or move sequences.train_until"
        _leave_out(account, names, why_not)
        return {}
    # Each baseline reads them several times.
    test_rows, training_rows = (
        rows.select(*_COLUMNS).persist(StorageLevel.MEMORY_AND_DISK) for rows in (window.test, window.training)
    )
    measured = {}
    for name in names:
        try:
            with progress(f"evaluate: {name}"):
                ranks = BASELINES[name](test_rows, training_rows, window.vocabulary, window.rules.list_length)
                measured[name] = window.measured(ranks)
        # Whatever it is: a model must not wait for what it is only compared with.
        except Exception as error:
            log.debug("baseline %s", name, exc_info=True)
            _leave_out(account, [name], cause(error))
    test_rows.unpersist()
    training_rows.unpersist()
    return measured


def _leave_out(account: Account, names: Sequence[str], why_not: str) -> None:
    what = f"baseline {names[0]} is" if len(names) == 1 else f"baselines {', '.join(names)} are"
    log.warning("the %s left out of the evaluation: %s", what, why_not)
    account.checks += [
        Check(CHECK, name, 1.0, 0.0, "warning", f"left out of the evaluation: {why_not}") for name in names
    ]


def cause(error: Exception) -> str:
    """In one line: what was raised in the Python worker, where Spark hands its stack trace on; else the message's first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [type(error).__name__])[0][:300]
