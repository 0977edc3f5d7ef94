"""ingest: raw files -> events, events_rejected, ingested_files.

Exactly once rests on a ledger, `ingested_files`, and not on a streaming checkpoint: a checkpoint knows a file by its path alone, so that a
file that grew or was mended is never read again, and one that is lost reads everything a second time into an append. Here a file is known
by path, size and time; an event by a hash of what it says, so that a record offered again is a duplicate wherever it stands; and the ledger
is written last. Every point at which a run can be killed thus leaves either files that the next run reads again, to find their events
already there, or files that are done. A file that is not the same after it was read is left to the next run.

A file that is read again adds to what it brought, and takes nothing back: an export of the last thirty days no longer holds what is older,
and a file may be written anew each day. Only an event that was made of half a line gives way once the line is whole.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import Config
from llm_spark.errors import UserError
from llm_spark.logs import log, progress
from llm_spark.pipelines import ingest_mapping, pseudonym_key
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.ingest_batch import Batch, NothingReadable, StillWritten, read_batch, these_events
from llm_spark.pipelines.ingest_ledger import (
    offered_files,
    tell_of_earlier_readings,
    with_torn_records,
    write_ledger,
)
from llm_spark.pipelines.ingest_report import account_for, gate, unreadable_check
from llm_spark.pipelines.item_rules import check_replacements
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES
from llm_spark.tables import raw
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms.identity import stable_id

_WRITER = "llm_spark.ingest"
_CLOCK_TOLERANCE = timedelta(hours=1)
_FUTURE_TOLERANCE = 0.01
"""Of a batch's records, as noise."""


def ingest(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Read the files not yet ingested; each record becomes an event, a rejected record with a reason, or is counted as a duplicate.

    Safe to repeat and to kill. UsageError before anything is read for a wrong key or time format; DataError (exit 3) before any event is
    written where too many records are at fault.
    """
    pseudonyms = pseudonym_key.load(config.ingest)
    pseudonym_key.check_warehouse(warehouse, pseudonyms)
    ingest_mapping.check_time_format(warehouse.spark, config.ingest)
    check_replacements(warehouse.spark, config.ingest.normalise_item)
    hidden = ingest_mapping.hidden_users(warehouse.spark, config.ingest, pseudonyms)
    raw.tell_of_hidden_names(warehouse.spark)
    offered = offered_files(warehouse, raw.list_files(warehouse.spark, config.ingest.paths), config.ingest)
    emptied = [f"nothing matches '{pattern}' any more" for pattern in offered.emptied]
    if not offered.files:
        account.nothing_to_do = ", and ".join(["every file is ingested already", *emptied])
        return
    # A file's name may hold the id of a user, and is not known to until the file is read.
    first = "" if pseudonyms else f", the first '{offered.files[0].uri}'"
    account.begin(f"read {len(offered.files):,} new or changed files{first}")
    account.remarks += emptied
    turn = warehouse.last_turn(EVENTS, _WRITER)
    files, torn = with_torn_records(warehouse, offered, config.ingest)
    try:
        with progress(f"ingest: reading {len(files)} files"):
            batch = read_batch(warehouse, files, config.ingest, _now(), hidden, torn)
    except NothingReadable as refusal:
        account.checks += [unreadable_check(file) for file in refusal.files]
        raise
    except StillWritten as waiting:
        if not warehouse.exists(EVENTS):
            raise
        account.nothing_to_do = str(waiting)
        return
    properties = pseudonym_key.properties(pseudonyms)
    try:
        with progress("ingest: writing"):
            _require_clock(batch, account)
            account_for(batch, config.ingest, account)
            tell_of_earlier_readings(offered, batch, account)
            _write_rejected(warehouse, batch, account, properties)
            gate(batch, config.ingest, pseudonyms is not None, is_first=not warehouse.exists(EVENTS))
            _write_events(warehouse, batch, account, turn, properties)
            write_ledger(warehouse, batch, config.ingest, account)
    finally:
        batch.release()
    account.wrote(warehouse, EVENTS, EVENTS_REJECTED, INGESTED_FILES)
    _refuse_unreadable(batch, account)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _require_clock(batch: Batch, account: Account) -> None:
    """A run is told as later than the ones before. By a clock that was moved back today's events lie in the future, and would be lost.

    Where none do, it was the clock of an earlier run that was wrong.
    """
    behind, total = account.started_at - _now(), batch.totals()
    share = total.rejected["future_time"] / max(1, total.num_records)
    if behind > _CLOCK_TOLERANCE and share > _FUTURE_TOLERANCE:
        raise UserError(
            f"the clock of this machine says {_now():%Y-%m-%d %H:%M} UTC, {behind} before the newest run, and {share:.0%} of the records are of "
            "later: set it, then run ingest again; nothing was written"
        )


def _write_rejected(warehouse: Warehouse, batch: Batch, account: Account, properties: dict[str, str]) -> None:
    rejected, num_rejected = batch.rejected(), batch.totals().num_rejected + len(batch.unreadable)
    if batch.unreadable:
        rows = [(file.uri, None, "unreadable_file", file.detail) for file in batch.unreadable]
        aside = warehouse.spark.createDataFrame(rows, "source_file string, raw string, reason string, detail string")
        rejected = rejected.unionByName(aside.withColumn("record_id", stable_id(F.col("source_file"))))
    before = 0
    if not warehouse.create(EVENTS_REJECTED, properties):
        _forget_earlier_rejections(warehouse, batch)
        before = warehouse.num_rows(EVENTS_REJECTED)
    if num_rejected:
        warehouse.append(EVENTS_REJECTED, _stamped(rejected, account), f"{_WRITER}-{account.run_id}")
        _expect(warehouse, "rejected records", warehouse.num_rows(EVENTS_REJECTED) - before, num_rejected)


def _forget_earlier_rejections(warehouse: Warehouse, batch: Batch) -> None:
    """A file that is read again, repaired or under other settings, is judged anew."""
    read_now = {file.uri for file in batch.files} | {file.uri for file in batch.unreadable}
    earlier = warehouse.read(EVENTS_REJECTED).select("source_file").distinct().collect()
    again = sorted(read_now & {row["source_file"] for row in earlier})
    if again:
        warehouse.delete(EVENTS_REJECTED, F.col("source_file").isin(again))


def _write_events(warehouse: Warehouse, batch: Batch, account: Account, turn: int, properties: dict[str, str]) -> None:
    before = 0 if warehouse.create(EVENTS, properties) else warehouse.num_rows(EVENTS)
    if batch.num_new_events:
        warehouse.append_in_turn(EVENTS, _stamped(batch.new_events(), account), _WRITER, turn + 1)
        _expect(warehouse, "events", warehouse.num_rows(EVENTS) - before, batch.num_new_events)
    # Last: a run that is killed before finds the rows again, and that they have given way to others.
    if batch.superseded:
        warehouse.delete(EVENTS, these_events(batch.superseded))


def _stamped(rows: DataFrame, account: Account) -> DataFrame:
    return rows.withColumns({"ingested_at": F.lit(account.started_at), "run_id": F.lit(account.run_id)})


def _expect(warehouse: Warehouse, what: str, num_found: int, num_expected: int) -> None:
    if num_found != num_expected:
        raise UserError(
            f"{num_expected:,} {what} were to be added to '{warehouse.root}' and {num_found:,} were: did another ingest write there "
            "meanwhile? No file is marked as ingested, run ingest again"
        )


def _refuse_unreadable(batch: Batch, account: Account) -> None:
    for file in batch.changing:
        log.warning("ingest: '%s' changed while it was read; the next run reads it", file.path)
    if batch.unreadable:
        first = batch.unreadable[0]
        num_files = len(batch.files) + len(batch.changing) + len(batch.unreadable)
        account.refusal = (
            f"{len(batch.unreadable)} of {num_files} files cannot be read, the first '{first.uri}' ({first.detail}): "
            "repair or remove it and run ingest again; all other files are ingested"
        )
