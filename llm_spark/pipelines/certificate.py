"""The certificate of a version of the sequences: measured on the tables, kept in data_quality, asked for before anything is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.errors import DataError
from llm_spark.pipelines.account import Account, Check
from llm_spark.schemas import DATA_QUALITY, EVENT_TYPES, SEQUENCES, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.certificate import (
    LAWS,
    Bounds,
    Coding,
    accounts_of_events,
    laws_of,
    num_late_rows,
    num_late_users,
    row_bounds,
    unlearned,
)
from llm_spark.transforms.history_kernel import BY_TIME
from llm_spark.transforms.splits import SplitTimes


def certify(warehouse: Warehouse, sessions: DataFrame, account: Account) -> None:
    """Count how often each law is broken by the newest sequences, set against the `sessions` that they were made from.

    Raises DataError naming the laws that do not hold; what was counted is recorded either way.
    """
    log = warehouse.log(SEQUENCES)
    version = log.version
    note = warehouse.origin(SEQUENCES)
    if note is None:
        raise DataError("the sequences table was not written by `llm-spark sequences`: run it again")
    sequences = warehouse.read(SEQUENCES, version)
    found = violations(sequences, sessions, warehouse.read(VOCABULARY), warehouse.read(EVENT_TYPES), note)
    subject, table = _subject(warehouse.data_version(SEQUENCES, version)), _table(log.table_id)
    for name in laws_of(note["split"]):
        number, example = found[name]
        severity = "error" if number else "info"
        account.checks.append(Check(name, subject, number, 0.0, severity, f"{table}: number of {LAWS[name]}{example}"))
    broken = [
        f"{name} ({found[name][0]:,} {LAWS[name]}{found[name][1]})" for name in laws_of(note["split"]) if found[name][0]
    ]
    if broken:
        raise DataError(
            f"{subject} cannot be certified: {'; '.join(broken)}: run `llm-spark sequences` again; data_quality keeps the counts"
        )
    account.remarks.append(f"{subject} certified: {len(laws_of(note['split']))} laws hold, recorded in data_quality")


def is_certified(warehouse: Warehouse) -> bool:
    """Whether the newest sequences have a certificate that passes."""
    return not _why_not(warehouse)


def require_certificate(warehouse: Warehouse) -> None:
    """DataError unless the newest sequences have a certificate that passes."""
    if why_not := _why_not(warehouse):
        raise DataError(why_not)


def was_measured(warehouse: Warehouse) -> bool:
    """Whether the newest sequences were held against the laws at all; they were not where the run that wrote them was killed then."""
    return bool(_certificate_rows(warehouse))


def _certificate_rows(warehouse: Warehouse) -> list[Row]:
    subject, table = _subject(warehouse.data_version(SEQUENCES)), _table(warehouse.log(SEQUENCES).table_id)
    of_version = (F.col("subject") == subject) & F.col("detail").startswith(f"{table}:")
    checks = warehouse.read_or_empty(DATA_QUALITY).where(of_version & F.col("name").isin(list(LAWS)))
    return checks.collect()


def _why_not(warehouse: Warehouse) -> str:
    """Why the newest sequences are not certified; empty where they are. The newest certificate of exactly their version counts."""
    subject = _subject(warehouse.data_version(SEQUENCES))
    note = warehouse.origin(SEQUENCES)
    if note is None or "split" not in note:
        return f"{subject} were not written by this version of `llm-spark sequences`: run it again"
    rows = _certificate_rows(warehouse)
    if not rows:
        return f"{subject} have no certificate: run `llm-spark sequences`"
    newest = max((row["measured_at"], row["run_id"]) for row in rows)
    found = {row["name"]: row["value"] for row in rows if (row["measured_at"], row["run_id"]) == newest}
    wrong = [name for name in laws_of(note["split"]) if found.get(name, 1) != 0]
    if wrong:
        return f"the certificate of {subject} does not hold ({', '.join(wrong)}): run `llm-spark sequences`"
    return ""


def _subject(version: int) -> str:
    return f"sequences v{version}"


def _table(table_id: str) -> str:
    # A table that is deleted and made anew counts its versions from 0 again.
    return f"table {table_id}"


def violations(
    sequences: DataFrame, sessions: DataFrame, vocabulary: DataFrame, event_types: DataFrame, note: Mapping[str, Any]
) -> dict[str, tuple[int, str]]:
    """For each law how often it is broken, and an example in words; `note` is what the sequences stage noted of its table."""
    split = note["split"]
    times = None
    if split == BY_TIME:
        times = SplitTimes(*(datetime.fromisoformat(note[name]) for name in ("train_until", "validation_until")))
    measured = _only(row_bounds(sequences))
    num_broken_rows = measured.pop("num_broken_rows")
    bounds = Bounds(**measured)
    late = num_late_rows(sequences, bounds) if split == BY_TIME else num_late_users(sequences)
    accounts = _only(late.crossJoin(accounts_of_events(sequences, sessions, split, times)))
    found = {name: (int(accounts[name]), "") for name in accounts if name in LAWS}
    found["rows_are_whole"] = (num_broken_rows, "")
    found["training_precedes_evaluation"] = (accounts["num"], "")
    codings = (
        Coding(
            vocabulary,
            "item_id",
            "tokens",
            "item_ids",
            note["added_from"][VOCABULARY.name],
            note["made_from"]["min_item_count"],
        ),
        Coding(
            event_types,
            "event_type",
            "event_types",
            "event_types",
            note["added_from"][EVENT_TYPES.name],
            1,
        ),
    )
    begins = bounds.evaluation_begins
    items, types = (unlearned(coding, sequences, sessions, split, times, begins) for coding in codings)
    unknown = _only(items.unionByName(types).agg(F.count("*").alias("num"), F.min_by("name", "token").alias("name")))
    example = f", such as '{unknown['name']}'" if unknown["num"] else ""
    found["vocabulary_from_training"] = (unknown["num"], example)
    return found


def _only(frame: DataFrame) -> dict[str, Any]:
    row = frame.first()
    assert row is not None
    return row.asDict()
