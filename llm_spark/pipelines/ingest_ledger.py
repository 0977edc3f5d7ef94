"""The ledger of ingest: which files are to be read, and what became of those that were."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from urllib.parse import unquote

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.config import MISSING_RULES, IngestConfig
from llm_spark.errors import UsageError, UserError
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.ingest_batch import Batch
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES
from llm_spark.tables import raw
from llm_spark.tables.raw import Listing, RawFile
from llm_spark.tables.raw_csv import torn_records
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.events import mapped_expressions


@dataclass(frozen=True)
class Offered:
    """What a run finds to read."""

    files: list[RawFile]
    """New ones, and those that are not what they were when they were read."""
    unchanged: list[RawFile]
    before: dict[str, Row]
    """By name: the row of each file in the ledger."""
    emptied: list[str]
    """Patterns under which there are no files any more."""


def offered_files(warehouse: Warehouse, listing: Listing, config: IngestConfig) -> Offered:
    """The files that are not ingested yet. UserError where `events` is gone, a pattern never matched anything, or a file has changed that was
    read under settings that make other events of its records."""
    rows = warehouse.read_or_empty(INGESTED_FILES).drop("num_records", "num_rejected", "run_id").collect()
    # The ledger is written last, so that a table that is not there was removed.
    if rows and not warehouse.exists(EVENTS):
        raise UserError(
            f"table 'events' is gone from '{warehouse.root}', and its ledger lists {len(rows):,} files: restore the table; or remove the "
            f"ledger too ('{warehouse.path(INGESTED_FILES)}'), and every raw file that is still there is read again"
        )
    before = {row["source_file"]: row for row in rows}
    for pattern, names in listing.unmatched.items():
        if not any(names.fullmatch(unquote(name)) for name in before):
            raise raw.nothing_matches(pattern)
    known = {(row["source_file"], row["num_bytes"], row["modified_at"]) for row in rows}
    files: list[RawFile] = []
    unchanged: list[RawFile] = []
    for file in listing.files:
        is_known = (file.uri, file.num_bytes, file.modified_at) in known
        (unchanged if is_known else files).append(file)
    _require_mapping([before[file.uri] for file in files if file.uri in before], identity_settings(config))
    return Offered(files, unchanged, before, list(listing.unmatched))


def identity_settings(config: IngestConfig) -> str:
    """Hash of the settings that make of a record the event that it is: under others it would be another event, and count beside it."""
    missing = config.missing
    rules = {"user": missing.user, "item": missing.item, "type": missing.type}
    rules |= {f"attributes.{name}": rule for name, rule in missing.attributes.items()}
    told = {
        # In their order, in which the attributes stand in the event.
        "columns": list(mapped_expressions(config.columns).items()),
        "time": [config.time_format, config.time_zone],
        "item": asdict(config.normalise_item),
        "constants": {name: rule for name, rule in rules.items() if rule not in MISSING_RULES},
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _require_mapping(earlier: Iterable[Row], now: str) -> None:
    # Null where an earlier version of this program read the file.
    others = [row for row in earlier if row["settings"] not in (None, now)]
    if others:
        more = f" (and {len(others) - 1:,} files more)" if len(others) > 1 else ""
        raise UsageError(
            f"'{others[0]['source_file']}'{more} was read under other settings of ingest (columns, time, item ids or constants for what is "
            "missing) and is to be read anew, for it or one that shares records with it has changed: its events would count twice. Give "
            "those settings until such files are complete, or begin a new warehouse"
        )


def with_torn_records(
    warehouse: Warehouse, offered: Offered, config: IngestConfig
) -> tuple[list[RawFile], DataFrame | None]:
    """The files to read and, of those that were read when their last record was not whole, this record as it was.

    Only a CSV record can be taken for a whole one: of the others the end is missing. What it became may be another file's true record, which
    then counted as a duplicate; so the files with duplicates since are read again too.
    """
    if config.format != "csv":
        return offered.files, None
    again = [(file, offered.before[file.uri]) for file in offered.files if file.uri in offered.before]
    grown = [(file, row["num_bytes"]) for file, row in again if file.num_bytes > row["num_bytes"]]
    found = torn_records(warehouse.spark, grown, config.csv_delimiter) if grown else None
    if found is None:
        return offered.files, None
    torn, files = found
    since: datetime = min(offered.before[file.uri]["ingested_at"] for file in files)

    def may_hold_it(row: Row) -> bool:
        return row["num_duplicates"] > 0 and row["ingested_at"] >= since

    others = [file for file in offered.unchanged if may_hold_it(offered.before[file.uri])]
    _require_mapping([offered.before[file.uri] for file in others], identity_settings(config))
    return sorted([*offered.files, *others], key=lambda file: file.uri), torn


def tell_of_earlier_readings(offered: Offered, batch: Batch, account: Account) -> None:
    """What the files that are read again lack of what they brought."""
    if batch.superseded:
        account.remarks.append(
            f"{len(batch.superseded):,} events were of lines that were not whole when they were read, and gave way to the whole ones"
        )
    removed: dict[str, int] = defaultdict(int)
    for event in batch.superseded:
        removed[event["source_file"]] += 1
    for uri, counts in batch.counts.items():
        before = offered.before.get(uri)
        if before is None:
            continue
        # Of a file that was renamed the events bear the old name, and count as duplicates.
        further_duplicates = max(0, counts.num_duplicates - before["num_duplicates"])
        num_lacking = before["num_accepted"] - counts.num_kept - removed[uri] - further_duplicates
        if num_lacking > 0:
            remark = f"it was read again and lacks {num_lacking:,} of the {before['num_accepted']:,} events that it brought: they stay"
            account.checks.append(Check("events_kept", uri, num_lacking, detail=remark))
            account.remarks.append(f"'{uri}': {remark}")


def write_ledger(warehouse: Warehouse, batch: Batch, config: IngestConfig, account: Account) -> None:
    """Enter the files that were read. One that is another under a new name takes its place and its numbers."""
    renamed = _renamed(warehouse, batch)
    gone = [row["source_file"] for row in renamed.values() if row["source_file"] not in batch.counts]
    if gone:
        warehouse.delete(EVENTS_REJECTED, F.col("source_file").isin(gone))
    rows, settings = [], identity_settings(config)
    for file in batch.files:
        counts, before = batch.counts[file.uri], renamed.get(file.uri)
        accepted, duplicates = counts.num_accepted, counts.num_duplicates
        if before is not None:
            accepted, duplicates = before["num_accepted"], before["num_duplicates"]
            account.remarks.append(
                f"'{file.uri}' is '{before['source_file']}' under a new name, with its events as they were"
            )
        numbers = (counts.num_records, accepted, counts.num_rejected, duplicates)
        rows.append(
            (file.uri, file.num_bytes, file.modified_at, *numbers, account.started_at, account.run_id, settings)
        )
    entries = warehouse.spark.createDataFrame(rows, INGESTED_FILES.schema)
    warehouse.upsert(INGESTED_FILES, entries, "source_file", leaving=gone)


def _is_compressed(name: str) -> bool:
    return name.endswith((".gz", ".bz2", ".zst", ".lz4", ".snappy", ".deflate"))


def _renamed(warehouse: Warehouse, batch: Batch) -> dict[str, Row]:
    """By the name of a file that brought nothing new: the ledger's row of the file it was before, which must be gone and have had the size,
    time and counts that this one has; where one of them is compressed, as a log that is rotated, time and counts. Taken for its old self, and
    by one alone: its rejected records would count twice."""
    files = {file.uri: file for file in batch.files}
    idle = [file for uri, file in files.items() if batch.counts[uri].num_records and not batch.counts[uri].num_accepted]
    if not idle or not warehouse.exists(INGESTED_FILES):
        return {}
    alike: dict[datetime, list[Row]] = defaultdict(list)
    for row in warehouse.read(INGESTED_FILES).orderBy("source_file").collect():
        alike[row["modified_at"]].append(row)
    found: dict[str, Row] = {}
    taken: set[str] = set()
    for file in sorted(idle, key=lambda file: file.uri):
        counts, rows = batch.counts[file.uri], alike[file.modified_at]
        if any(row["source_file"] == file.uri for row in rows):
            continue
        for row in rows:
            name = row["source_file"]
            is_same = (row["num_records"], row["num_rejected"]) == (counts.num_records, counts.num_rejected) and (
                row["num_bytes"] == file.num_bytes or _is_compressed(name) != _is_compressed(file.uri)
            )
            # In this batch too where a log was rotated: the old name then stands for a new file.
            other = files.get(name)
            is_moved = (
                not raw.exists(warehouse.spark, name)
                if other is None
                else (other.num_bytes, other.modified_at) != (row["num_bytes"], row["modified_at"])
            )
            if is_same and name not in taken and is_moved:
                found[file.uri] = row
                taken.add(name)
                break
    return found
