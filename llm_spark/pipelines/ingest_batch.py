"""The files of one run, read once and judged, with where each of their records belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from os.path import commonprefix

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from llm_spark.config import IngestConfig
from llm_spark.errors import DataError, Refusal
from llm_spark.logs import log
from llm_spark.pipelines.ingest_mapping import judged_records, judged_torn_records
from llm_spark.schemas import EVENTS
from llm_spark.tables import raw
from llm_spark.tables.raw import RawFile, Unreadable, UnreadableFilesError
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms import events
from llm_spark.transforms.events import HiddenUsers

_MAX_FAILED_READINGS = 20
"""Each finds one file that cannot be read, and reads the others in vain."""
_MAX_FILES_NAMED = 25
_MAX_DATES_NAMED = 400
_BYTES_PER_SLOT = 128 << 20
_GZIP_FACTOR = 6


@dataclass
class FileCounts:
    """Where the records of one file went."""

    num_accepted: int = 0
    num_duplicates: int = 0
    num_kept: int = 0
    """Of the accepted ones those whose event an earlier run took from this file."""
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
    superseded: list[Row]
    """event_date, event_id, source_file of rows of `events` that were made of records before these were whole."""
    lacking: dict[str, list[str]]
    """Column that no file has -> the settings that name it."""
    unreadable: list[Unreadable]
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


class NothingReadable(Refusal):
    """Files that cannot be read keep all others from being ingested."""

    def __init__(self, said: str, files: list[Unreadable]) -> None:
        more = f"; and {len(files) - _MAX_FILES_NAMED:,} more" if len(files) > _MAX_FILES_NAMED else ""
        named = "; ".join(map(str, files[:_MAX_FILES_NAMED]))
        super().__init__(f"{said}: {named}{more}: repair or remove them, then run ingest again")
        self.files = files


class StillWritten(DataError):
    """All files changed while they were read."""


def read_batch(
    warehouse: Warehouse,
    files: list[RawFile],
    config: IngestConfig,
    now: datetime,
    hidden: HiddenUsers | None,
    torn: DataFrame | None = None,
) -> Batch:
    """Read and judge all records once. A file that cannot be read is set aside and the rest is read again; one that is not the file any more
    that was listed is left out. `torn`: records of these files as an earlier run read them, before they were whole.

    NothingReadable or StillWritten where no file is left.
    """
    spark, readable, is_first = warehouse.spark, list(files), not warehouse.exists(EVENTS)
    unreadable: list[Unreadable] = []
    changing: list[RawFile] = []
    num_failed = 0
    while True:
        if not readable:
            raise _nothing_left(files, unreadable)
        numbered: DataFrame | None = None
        try:
            judged = judged_records(spark, readable, config, now, hidden, is_first)
            numbered = events.numbered(events.laid_out(judged.records, _num_slots(readable)))
            numbered = numbered.persist(StorageLevel.MEMORY_AND_DISK)
            records = _nowhere_stored(numbered)
            tallies = _tallies(records, with_dates=True)
            break
        except Exception as error:
            if numbered is not None:
                numbered.unpersist()
            if isinstance(error, UnreadableFilesError):
                broken = error.files
            elif file := raw.unreadable_file(error, readable):
                broken, num_failed = [file], num_failed + 1
            else:
                raise
            for file in broken:
                log.warning("ingest: %s; it is set aside", file)
            gone = {file.uri for file in broken if file.is_gone}
            changing += [file for file in readable if file.uri in gone]
            unreadable += [file for file in broken if not file.is_gone]
            if num_failed > _MAX_FAILED_READINGS:
                raise NothingReadable(
                    f"{len(unreadable)} files cannot be read, and whether more cannot was not looked into", unreadable
                ) from error
            left_out = {file.uri for file in broken}
            readable = [file for file in readable if file.uri not in left_out]
    # Before anything is said of a file that changes meanwhile.
    if any(tally["num_telling"] for tally in tallies):
        name = _telling_name(records)
        numbered.unpersist()
        raise DataError(
            f"the name of a raw file, '{name}', holds the id of a user in it, here shown as …, which ingest.pseudonymise is to hide and the "
            "tables would show: rename it"
        )
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
    held = [numbered]
    dates = sorted({day for tally in tallies for day in tally["dates"]})
    superseded = []
    if torn is not None and not is_first:
        superseded = _superseded(warehouse, judged_torn_records(torn, config, now, hidden), records, readable)
    known = _known(warehouse, records, dates, superseded)
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
            counted.num_kept += tally["num"] - tally["num_new"]
        else:
            counted.num_duplicates += tally["num"]
        num_new_events += tally["num_new"]
    lacking = judged.lacking
    return Batch(readable, records, counts, dates, num_new_events, superseded, lacking, unreadable, changing, held)


def _nowhere_stored(records: DataFrame) -> DataFrame:
    return records.withColumn("stored_file", F.lit(None).cast("string"))


def _telling_name(records: DataFrame) -> str:
    """Of the first file whose name holds ids: the name without them."""
    telling = records.where(F.col("telling_name").isNotNull())
    by_file = telling.groupBy("source_file").agg(F.collect_set("telling_name").alias("names"))
    first = by_file.orderBy("source_file").first()
    assert first is not None
    names = first["names"]
    # Each of several leaves out another id: what they share ends before the first of these.
    return names[0] if len(names) == 1 else commonprefix(names) + "…"  # noqa: RUF071 - character by character is meant


def _nothing_left(files: list[RawFile], unreadable: list[Unreadable]) -> DataError:
    if unreadable:
        return NothingReadable(f"none of the {len(files)} files can be read", unreadable)
    return StillWritten(
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
    sums = [
        F.count("*").alias("num"),
        F.count_if(is_new).alias("num_new"),
        F.count("telling_name").alias("num_telling"),
    ]
    if with_dates:
        sums.append(F.collect_set("event_date").alias("dates"))
    return records.groupBy("source_file", "reason", is_own.alias("is_own")).agg(*sums).collect()


def these_events(rows: Sequence[Row]) -> Column:
    """Whether a row of `events` is one of these, by event_date, event_id and source_file; there may be thousands."""
    keys = [f"{row['event_id']}{row['source_file']}" for row in rows]  # all ids are equally long
    # The date, which the id stands for too, spares the reading of other days.
    dates = sorted({row["event_date"] for row in rows})
    return F.col("event_date").isin(dates) & F.concat("event_id", "source_file").isin(keys)


def _superseded(warehouse: Warehouse, torn: DataFrame, records: DataFrame, files: list[RawFile]) -> list[Row]:
    """The rows of `events` made of `torn` records whose file, now that it is read again, holds no such record."""
    place = ["event_date", "event_id", "source_file"]
    read_now = {file.uri for file in files}
    was_accepted = torn.where(F.col("reason").isNull()).select(*place).distinct().collect()
    of_then = [row for row in was_accepted if row["source_file"] in read_now]
    if not of_then:
        return []
    still = set(records.where(F.col("reason").isNull() & these_events(of_then)).select(*place).distinct().collect())
    stored = warehouse.read(EVENTS).where(these_events(of_then)).select(*place).collect()
    return [row for row in stored if row not in still]


def _known(warehouse: Warehouse, records: DataFrame, dates: list[date], superseded: list[Row]) -> DataFrame | None:
    """Those of the batch's events that `events` holds already, but for superseded rows, with the file each came from; None where it holds
    none of them."""
    if not dates or not warehouse.exists(EVENTS):
        return None
    stored = warehouse.read(EVENTS)
    if len(dates) <= _MAX_DATES_NAMED:
        stored = stored.where(F.col("event_date").isin(dates))
    else:
        stored = stored.where(F.col("event_date").between(dates[0], dates[-1]))
    if superseded:
        stored = stored.where(~these_events(superseded))
    named = stored.select("event_date", "event_id", F.col("source_file").alias("stored_file"))
    offered = records.where((F.col("occurrence") == 1) & F.col("reason").isNull()).select("event_date", "event_id")
    known = named.join(offered, ["event_date", "event_id"], "left_semi").persist(StorageLevel.MEMORY_AND_DISK)
    if known.isEmpty():
        known.unpersist()
        return None
    return known
