"""The certificate of a version of the sequences: measured on the tables, kept in data_quality, asked for before anything is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.errors import DataError
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.values import ValueTreatment
from llm_spark.schemas import DATA_QUALITY, EVENT_TYPES, SEQUENCES, SPLITS, VOCABULARY
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.certificate import (
    LAWS,
    Bounds,
    Coding,
    Contents,
    accounts_of_events,
    laws_of,
    misplaced_contents,
    num_late_rows,
    num_late_users,
    open_labels,
    row_bounds,
    unlearned,
)
from llm_spark.transforms.history_kernel import BY_TIME
from llm_spark.transforms.sequences import epoch_microseconds
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
            f"{subject} cannot be certified: {'; '.join(broken)}: this is a fault of the program, or a table was changed by hand; look there, "
            "`llm-spark sequences` makes the same of the same sessions; data_quality keeps the counts"
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
    """Whether the newest sequences were held against every law; not where the run that wrote them was killed then, or knew fewer laws."""
    note = warehouse.origin(SEQUENCES) or {}
    return set(laws_of(note["split"])) <= _newest_counts(warehouse).keys() if "split" in note else False


def _newest_counts(warehouse: Warehouse) -> dict[str, float]:
    """How often each law is broken, by the newest certificate of the newest sequences; empty where they have none."""
    rows = _certificate_rows(warehouse)
    newest = max(((row["measured_at"], row["run_id"]) for row in rows), default=None)
    return {row["name"]: row["value"] for row in rows if (row["measured_at"], row["run_id"]) == newest}


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
    found = _newest_counts(warehouse)
    if not found:
        return f"{subject} have no certificate: run `llm-spark sequences`"
    if unmeasured := [name for name in laws_of(note["split"]) if name not in found]:
        return f"{subject} were never held against {', '.join(unmeasured)}: run `llm-spark sequences`"
    if wrong := [name for name in laws_of(note["split"]) if found[name] != 0]:
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
    """For each law how often it is broken, and in words where; `note` is what the sequences stage noted of its table."""
    split, made_from = note["split"], note["made_from"]
    times = None
    if split == BY_TIME:
        times = SplitTimes(*(datetime.fromisoformat(note[name]) for name in ("train_until", "validation_until")))
    measured = _only(row_bounds(sequences))
    num_broken_rows, broken_row = measured.pop("num_broken_rows"), measured.pop("broken_row")
    num_positions = measured.pop("num_positions")
    bounds = Bounds(**measured)
    late = num_late_rows(sequences, bounds) if split == BY_TIME else num_late_users(sequences)
    accounts = _only(late.crossJoin(accounts_of_events(sequences, sessions, split, times)))
    found = _session_accounts(accounts, sessions)
    found["rows_are_whole"] = (num_broken_rows, _such_as("row", broken_row))
    found["training_precedes_evaluation"] = (accounts["num"], _such_as("row", accounts["late_row"]))
    items = Coding(
        vocabulary, "item_id", "tokens", "item_ids", note["added_from"][VOCABULARY.name], made_from["min_item_count"]
    )
    types = Coding(event_types, "event_type", "event_types", "event_types", note["added_from"][EVENT_TYPES.name], 1)
    treatment = ValueTreatment.of_json(note.get("values"))
    is_filled, num_features = treatment.fill.rule != "keep", len(made_from.get("features", []))
    contents = Contents.of(num_positions, not is_filled, num_features)
    compared = _only(misplaced_contents(sequences, treatment.clipped(sessions), items, types, split, times, contents))
    share = f" of one user in {contents.one_user_in}" if contents.one_user_in > 1 else ""
    row = _ids(sequences, "sequence_id", [compared["row"]]).get(compared["row"])
    found["contents_are_the_events"] = (compared["num"], f"{share}{_such_as('row', row)}")
    labels = _only(_open_labels(sequences, sessions, made_from.get("outcomes", []), times))
    found["labels_close_in_their_split"] = (labels["num"], _such_as("row", labels["row"]))
    begins = bounds.evaluation_begins
    of_items, of_types = (unlearned(coding, sequences, sessions, split, times, begins) for coding in (items, types))
    unknown = _only(
        of_items.unionByName(of_types).agg(F.count("*").alias("num"), F.min_by("name", "token").alias("name"))
    )
    found["vocabulary_from_training"] = (unknown["num"], f", such as '{unknown['name']}'" if unknown["num"] else "")
    return found


def _such_as(what: str, name: str | None) -> str:
    return f", such as in {what} '{name}'" if name is not None else ""


def _session_accounts(accounts: Mapping[str, Any], sessions: DataFrame) -> dict[str, tuple[int, str]]:
    """The laws that sequences and sessions are set against each other by, with the id of a session where one is broken."""
    hashes = {name: accounts[f"{name}_session"] for name in accounts if name in LAWS}
    ids = _ids(sessions, "session_id", hashes.values())
    return {name: (int(accounts[name]), _such_as("session", ids.get(number))) for name, number in hashes.items()}


def _ids(frame: DataFrame, column: str, hashes: Iterable[int | None]) -> dict[int | None, str]:
    """By xxhash64, of those that are not None."""
    wanted, hashed = [number for number in hashes if number is not None], F.xxhash64(column)
    if not wanted:
        return {}
    return {row[0]: row[1] for row in frame.where(hashed.isin(wanted)).select(hashed, column).collect()}


def _open_labels(
    sequences: DataFrame, sessions: DataFrame, outcomes: Sequence[Mapping[str, Any]], times: SplitTimes | None
) -> DataFrame:
    if times is None or not outcomes:
        return open_labels(sequences, [], {})
    newest = _only(sessions.agg(F.unix_micros(F.max("ended_at")).alias("at")))["at"]
    ends = [epoch_microseconds(end) for end in (times.train_until, times.validation_until)]
    windows = [round(outcome["within_days"] * 86_400 * 1_000_000) for outcome in outcomes]
    return open_labels(sequences, windows, dict(zip(SPLITS, [*ends, newest], strict=True)))


def _only(frame: DataFrame) -> dict[str, Any]:
    row = frame.first()
    assert row is not None
    return row.asDict()
