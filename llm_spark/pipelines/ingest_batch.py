"""The files of one run, read once and judged, with where each of their records belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import IngestConfig
from llm_spark.errors import DataError, Refusal, UserError
from llm_spark.logs import log
from llm_spark.pipelines.ingest_mapping import judged_records
from llm_spark.schemas import EVENTS
from llm_spark.tables import raw
from llm_spark.tables.raw import RawFile, UnreadableFileError
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms import events
from llm_spark.transforms.events import HiddenUsers

_MAX_UNREADABLE_FILES = 20
_MAX_DATES_NAMED = 400
_BYTES_PER_SLOT = 128 << 20
_GZIP_FACTOR = 6


@dataclass
class FileCounts:
    """Where the records of one file went."""

    num_accepted: int = 0
    num_duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""

    @property
    def num_rejected(self) -> int:
        return self.rejected.total()

    @property
    def num_records(self) -> int:
        return self.num_accepted + self.num_duplicates + self.num_rejected


@dataclass
class Batch:
    """The records of `files`, laid out and held in memory or on the local disk, and what became of each."""

    files: list[RawFile]
    records: DataFrame
    """Judged, numbered; `stored_file` is the file that the event's row in `events` came from, null where it has none."""
    counts: dict[str, FileCounts]
    dates: list[date]
    """UTC days of the accepted records."""
    num_new_events: int
    unreadable: list[UnreadableFileError]
    changing: list[RawFile]
    """Those that grew, changed or vanished while they were read: none of their records is in the batch."""
    held: list[DataFrame]

    def release(self) -> None:
        for frame in self.held:
            frame.unpersist()

    def new_events(self) -> DataFrame:
        """Those that are not in `events`, each once."""
        is_first = F.col("reason").isNull() & (F.col("occurrence") == 1)
        return self.records.where(is_first & F.col("stored_file").isNull())

    def rejected(self) -> DataFrame:
        return events.rejected_records(self.records)

    def totals(self) -> FileCounts:
        total = FileCounts()
        for counts in self.counts.values():
            total.num_accepted += counts.num_accepted
            total.num_duplicates += counts.num_duplicates
            total.rejected += counts.rejected
        return total


def read_batch(
    warehouse: Warehouse, files: list[RawFile], config: IngestConfig, now: datetime, hidden: HiddenUsers | None
) -> Batch:
    """Read and judge all records once. A file that cannot be read is set aside and the rest is read again; one that is not the file any more
    that was listed is left out."""
    spark, readable = warehouse.spark, list(files)
    unreadable: list[UnreadableFileError] = []
    changing: list[RawFile] = []
    while True:
        if not readable:
            raise _nothing_left(files, unreadable)
        numbered: DataFrame | None = None
        try:
            judged = judged_records(spark, readable, config, now, hidden)
            numbered = events.numbered(events.laid_out(judged, _num_slots(readable)))
            numbered = numbered.persist(StorageLevel.MEMORY_AND_DISK)
            records = _nowhere_stored(numbered)
            tallies = _tallies(records, with_dates=True)
            break
        except Exception as error:
            if numbered is not None:
                numbered.unpersist()
            broken = error if isinstance(error, UnreadableFileError) else raw.unreadable_file(error, readable)
            if broken is None:
                raise
            log.warning("ingest: %s; it is set aside", broken)
            if broken.is_gone:
                changing += [file for file in readable if file.uri == broken.uri]
            else:
                unreadable.append(broken)
            if len(unreadable) > _MAX_UNREADABLE_FILES:
                raise UserError(f"{broken}: too many files are unreadable to go on") from error
            readable = [file for file in readable if file.uri != broken.uri]
    changed = raw.changed_files(spark, readable)
    changing += changed
    if changed:
        left_out = {file.uri for file in changed}
        readable = [file for file in readable if file.uri not in left_out]
        if not readable:
            raise _nothing_left(files, unreadable)
        # Numbered anew: an event's first occurrence may have been in one of them.
        kept = numbered.where(~F.col("source_file").isin(sorted(left_out)))
        records = _nowhere_stored(events.numbered(kept))
        tallies = _tallies(records, with_dates=True)
    if any(tally["file_tells"] for tally in tallies):
        numbered.unpersist()
        raise DataError(
            "the name of a raw file holds the id of a user in it, which ingest.pseudonymise is to hide and the tables would show: rename it"
        )
    held = [numbered]
    dates = sorted({day for tally in tallies for day in tally["dates"]})
    known = _known(warehouse, records, dates)
    if known is not None:
        held.append(known)
        records = records.drop("stored_file").join(known, ["event_date", "event_id"], "left")
        tallies = _tallies(records, with_dates=False)
    counts = {file.uri: FileCounts() for file in readable}
    num_new_events = 0
    for tally in tallies:
        counted = counts[tally["source_file"]]
        if tally["reason"] is not None:
            counted.rejected[tally["reason"]] += tally["num"]
        elif tally["is_own"]:
            counted.num_accepted += tally["num"]
        else:
            counted.num_duplicates += tally["num"]
        num_new_events += tally["num_new"]
    return Batch(readable, records, counts, dates, num_new_events, unreadable, changing, held)


def _nowhere_stored(records: DataFrame) -> DataFrame:
    return records.withColumn("stored_file", F.lit(None).cast("string"))


def _nothing_left(files: list[RawFile], unreadable: list[UnreadableFileError]) -> DataError:
    if unreadable:
        return Refusal(f"none of the {len(files)} files can be read, the first {unreadable[0]}: repair or remove them")
    return DataError(
        f"all {len(files)} files changed while they were read, '{files[0].path}' the first: run ingest again when they are whole"
    )


def _num_slots(files: Iterable[RawFile]) -> int:
    num_bytes = sum(file.num_bytes * (_GZIP_FACTOR if file.uri.endswith(".gz") else 1) for file in files)
    return 1 + num_bytes // _BYTES_PER_SLOT


def _tallies(records: DataFrame, with_dates: bool) -> list:
    """Numbers of records by file, reason and whether the file is the one that the event's row names."""
    is_new = F.col("reason").isNull() & F.col("stored_file").isNull() & (F.col("occurrence") == 1)
    is_stored_from_here = (F.col("stored_file") == F.col("source_file")) & (F.col("occurrence_in_file") == 1)
    is_own = is_new | F.coalesce(is_stored_from_here, F.lit(False))
    sums = [F.count("*").alias("num"), F.count_if(is_new).alias("num_new"), F.bool_or("file_tells").alias("file_tells")]
    if with_dates:
        sums.append(F.collect_set("event_date").alias("dates"))
    return records.groupBy("source_file", "reason", is_own.alias("is_own")).agg(*sums).collect()


def _known(warehouse: Warehouse, records: DataFrame, dates: list[date]) -> DataFrame | None:
    """Those of the batch's events that `events` holds already, with the file each came from; None where it holds none of them."""
    if not dates or not warehouse.exists(EVENTS):
        return None
    stored = warehouse.read(EVENTS)
    if len(dates) <= _MAX_DATES_NAMED:
        stored = stored.where(F.col("event_date").isin(dates))
    else:
        stored = stored.where(F.col("event_date").between(dates[0], dates[-1]))
    named = stored.select("event_date", "event_id", F.col("source_file").alias("stored_file"))
    offered = records.where((F.col("occurrence") == 1) & F.col("reason").isNull()).select("event_date", "event_id")
    known = named.join(offered, ["event_date", "event_id"], "left_semi").persist(StorageLevel.MEMORY_AND_DISK)
    if known.isEmpty():
        known.unpersist()
        return None
    return known
