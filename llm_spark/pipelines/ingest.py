"""ingest: raw files -> events, events_rejected, ingested_files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyspark import StorageLevel
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from llm_spark.config import Config, IngestConfig
from llm_spark.errors import DataError, UsageError, UserError
from llm_spark.logs import log, progress
from llm_spark.pipelines.account import Account
from llm_spark.pipelines.item_rules import check_replacements
from llm_spark.schemas import EVENTS, EVENTS_REJECTED, INGESTED_FILES
from llm_spark.tables import raw
from llm_spark.tables.raw import RawFile, UnreadableFileError
from llm_spark.tables.warehouse import Warehouse
from llm_spark.transforms import events, records
from llm_spark.transforms.identity import stable_id
from llm_spark.transforms.missing import reasons_that_are_no_fault

_MAX_UNREADABLE_FILES = 20
_NUM_LINES_SAMPLED = 1_000


def ingest(warehouse: Warehouse, config: Config, account: Account) -> None:
    """Read the files not yet ingested; each record becomes an event, a rejected record with a reason, or is counted as a duplicate.

    Safe to repeat and to kill: the ledger of files is written last, and events and rejected records are inserted by their ids.
    """
    spark = warehouse.spark
    _check_time_format(spark, config.ingest)
    check_replacements(spark, config.ingest.normalise_item)
    files = _not_yet_ingested(warehouse, raw.list_files(spark, config.ingest.paths))
    if not files:
        account.nothing_to_do = "every file is ingested already"
        return
    with progress(f"ingest: reading {len(files)} files"):
        batch = _judge(spark, files, config.ingest, account)
    with progress("ingest: writing"):
        _write_rejected(warehouse, batch, account)
        _gate(batch, config.ingest)
        _write_events(warehouse, batch, account)
        counts = _count(warehouse, batch)
        _write_ledger(warehouse, batch, counts, account)
    batch.judged.unpersist()
    account.wrote(warehouse, EVENTS, EVENTS_REJECTED, INGESTED_FILES)
    if batch.unreadable:
        first = batch.unreadable[0]
        account.refusal = (
            f"{len(batch.unreadable)} of {len(files)} files cannot be read, the first '{first.uri}' ({first.detail}): "
            f"repair or remove it and run ingest again; all other files are ingested"
        )


@dataclass
class _Batch:
    files: list[RawFile]
    judged: DataFrame
    num_records: dict[str, int]
    """Records by file."""
    rejected: dict[str, int]
    """Records by reason."""
    unreadable: list[UnreadableFileError] = field(default_factory=list)


def _not_yet_ingested(warehouse: Warehouse, files: list[RawFile]) -> list[RawFile]:
    ledger = warehouse.read_or_empty(INGESTED_FILES).select("source_file", "num_bytes", "modified_at").collect()
    known = {(row.source_file, row.num_bytes, row.modified_at) for row in ledger}
    return [file for file in files if (file.uri, file.num_bytes, file.modified_at) not in known]


def _judge(spark: SparkSession, files: list[RawFile], config: IngestConfig, account: Account) -> _Batch:
    """Read and judge all records once; files that turn out unreadable are set aside and the rest is read again."""
    unreadable: list[UnreadableFileError] = []
    readable = list(files)
    while readable:
        try:
            judged = _judged(spark, readable, config, account).persist(StorageLevel.MEMORY_AND_DISK)
            rows = judged.groupBy("source_file", "reason").count().collect()
            break
        except Exception as error:
            broken = error if isinstance(error, UnreadableFileError) else raw.unreadable_file(error)
            if broken is None:
                raise
            log.warning("ingest: %s; it is set aside", broken)
            unreadable.append(broken)
            remaining = [file for file in readable if file.uri != broken.uri]
            if len(remaining) == len(readable) or len(unreadable) > _MAX_UNREADABLE_FILES:
                raise UserError(f"{broken}: too many files are unreadable to go on") from error
            readable = remaining
    else:
        raise DataError(f"none of the {len(files)} files can be read, the first {unreadable[0]}: repair or remove them")
    num_records = {file.uri: 0 for file in readable}
    rejected: dict[str, int] = {}
    for row in rows:
        num_records[row["source_file"]] += row["count"]
        if row["reason"] is not None:
            rejected[row["reason"]] = rejected.get(row["reason"], 0) + row["count"]
    return _Batch(readable, judged, num_records, rejected, unreadable)


def _judged(spark: SparkSession, files: Sequence[RawFile], config: IngestConfig, account: Account) -> DataFrame:
    found = _records(spark, files, config)
    known = [name for name in found.columns if not name.startswith("_")]
    for name, expression in events.mapped_expressions(config.columns).items():
        if expression not in known:
            _check_expression(found, f"ingest.columns.{name}", expression)
    for rule in config.filters:
        _check_expression(found, "ingest.filters", rule)
    return events.judge(found, config, account.started_at)


def _records(spark: SparkSession, files: Sequence[RawFile], config: IngestConfig) -> DataFrame:
    if config.format == "csv":
        return raw.read_csv(spark, files, config.csv_delimiter)
    if config.format == "parquet":
        return raw.read_parquet(spark, files)
    lines = raw.read_text(spark, files)
    if config.format == "access_log":
        return records.parse_access_log(lines)
    return _json_records(spark, lines, config)


def _json_records(spark: SparkSession, lines: DataFrame, config: IngestConfig) -> DataFrame:
    keys = F.explode(F.json_object_keys("_raw"))
    found = sorted(row[0] for row in lines.limit(_NUM_LINES_SAMPLED).select(keys.alias("key")).distinct().collect())
    mapped = events.mapped_expressions(config.columns)
    paths: dict[tuple[str, ...], None] = {}
    for name, expression in {**mapped, **{f"filter {rule}": rule for rule in config.filters}}.items():
        wanted = [(expression,)] if expression in found else _referenced(spark, f"ingest.columns.{name}", expression)
        for path in wanted:
            absent = bool(found) and path[0] not in found
            if absent and name in ("user", "item", "time"):
                raise UsageError(
                    f"ingest.columns.{name}: '{path[0]}' is not among the fields found: {', '.join(found)}"
                )
            if absent:
                log.warning("ingest: '%s' (%s) is in none of the first %d records", path[0], name, _NUM_LINES_SAMPLED)
            paths[path] = None
    return records.parse_json_lines(lines, paths)


def _referenced(spark: SparkSession, key: str, expression: str) -> list[tuple[str, ...]]:
    try:
        return raw.referenced_columns(spark, expression)
    except UserError as error:
        raise UsageError(f"{key}: {error}") from error


def _check_expression(found: DataFrame, key: str, expression: str) -> None:
    known = [name for name in found.columns if not name.startswith("_")]
    folded = {name.lower() for name in known}
    # Spark takes an unknown `user` for the account it runs under.
    for path in _referenced(found.sparkSession, key, expression):
        if path[0].lower() not in folded:
            raise UsageError(f"{key}: '{path[0]}' is not among the columns found: {', '.join(known)}")
    try:
        checked = found.select(F.expr(expression))
    except (AnalysisException, ParseException) as error:
        line = next(line for line in str(error).splitlines() if line.strip())
        raise UsageError(f"{key}: '{expression}' is no valid Spark SQL expression: {line[:200]}") from error
    # Spark compares text with a whole number by cutting the text's decimals off: '0.85' > 0 would be false.
    truncated = re.search(r"cast\((\w+)#\d+L? as (?:int|bigint)\)", checked._jdf.queryExecution().analyzed().toString())
    if truncated is not None and not re.search(r"(?i)\b(int|integer|bigint|long)\b", expression):
        raise UsageError(
            f"{key}: '{expression}' compares the text column {truncated[1]} with a whole number: "
            f"write double({truncated[1]}) or int({truncated[1]})"
        )


def _check_time_format(spark: SparkSession, config: IngestConfig) -> None:
    known = config.time_format in ("iso8601", "epoch_s", "epoch_ms", "epoch_us")
    shown = F.lit("") if known else F.date_format(F.current_timestamp(), config.time_format)
    try:
        spark.range(1).select(shown, F.to_utc_timestamp(F.current_timestamp(), config.time_zone)).collect()
    except Exception as error:
        raise UsageError(
            f"ingest.time_format '{config.time_format}' (zone '{config.time_zone}') is not understood: "
            "give iso8601, epoch_s, epoch_ms, epoch_us, or a Spark datetime pattern such as yyyy-MM-dd HH:mm:ss"
        ) from error


def _gate(batch: _Batch, config: IngestConfig) -> None:
    num_records = sum(batch.num_records.values())
    if num_records == 0:
        raise DataError(
            f"the {len(batch.files)} files hold no record, '{batch.files[0].path}' the first: check the export"
        )
    asked_for = reasons_that_are_no_fault(config.missing)
    faults = {reason: number for reason, number in batch.rejected.items() if reason not in asked_for}
    if faults and sum(batch.rejected.values()) == num_records:
        reason = max(faults, key=lambda name: faults[name])
        example = batch.judged.where(F.col("reason") == reason).select("raw", "detail").first()
        assert example is not None
        shown = (example["detail"] or example["raw"] or "")[:120]
        raise DataError(
            f"none of {num_records:,} records was accepted; {batch.rejected[reason]:,} are {reason}, for example '{shown}'{_remedy(reason, config)}"
        )
    num_faults = sum(faults.values())
    if num_faults / num_records > config.max_rejected_fraction:
        raise DataError(
            f"{num_faults:,} of {num_records:,} records are at fault, more than ingest.max_rejected_fraction {config.max_rejected_fraction}: "
            "look at events_rejected; no event was written"
        )


def _remedy(reason: str, config: IngestConfig) -> str:
    if reason == "bad_time":
        return f": it does not match ingest.time_format '{config.time_format}'"
    return f": is ingest.format '{config.format}' right?" if reason == "unparsable" else ": check ingest.columns"


def _write_rejected(warehouse: Warehouse, batch: _Batch, account: Account) -> None:
    rejected = events.rejected_records(batch.judged)
    if batch.unreadable:
        rows = [(file.uri, None, "unreadable_file", file.detail) for file in batch.unreadable]
        aside = warehouse.spark.createDataFrame(rows, "source_file string, raw string, reason string, detail string")
        rejected = rejected.unionByName(aside.withColumn("record_id", stable_id(F.col("source_file"))))
    _forget_earlier_rejections(warehouse, batch)
    warehouse.insert_new(EVENTS_REJECTED, _stamped(rejected, account), "record_id")


def _forget_earlier_rejections(warehouse: Warehouse, batch: _Batch) -> None:
    """A file that is read again, repaired or under other settings, is judged anew."""
    if not warehouse.exists(EVENTS_REJECTED):
        return
    read_now = {file.uri for file in batch.files} | {file.uri for file in batch.unreadable}
    earlier = warehouse.read(EVENTS_REJECTED).select("source_file").distinct().collect()
    again = sorted(read_now & {row["source_file"] for row in earlier})
    if again:
        warehouse.delete(EVENTS_REJECTED, F.col("source_file").isin(again))


def _write_events(warehouse: Warehouse, batch: _Batch, account: Account) -> None:
    unique = events.accepted_events(batch.judged).where(F.col("occurrence") == 1)
    warehouse.insert_new(EVENTS, _stamped(unique, account), "event_id")


def _stamped(rows: DataFrame, account: Account) -> DataFrame:
    return rows.withColumns({"ingested_at": F.lit(account.started_at), "run_id": F.lit(account.run_id)})


def _count(warehouse: Warehouse, batch: _Batch) -> DataFrame:
    """Where each record ended up, by file, as read back from the tables: source_file, num_accepted, num_rejected, num_duplicates."""
    stored = warehouse.read(EVENTS).select("event_id", "event_date", F.col("source_file").alias("stored_file"))
    landed = events.accepted_events(batch.judged).join(stored, ["event_id", "event_date"], "inner")
    is_event = (F.col("stored_file") == F.col("source_file")) & (F.col("occurrence_in_file") == 1)
    accepted = landed.groupBy("source_file").agg(
        F.count_if(is_event).alias("num_accepted"), F.count_if(~is_event).alias("num_duplicates")
    )
    kept = events.rejected_records(batch.judged).join(
        warehouse.read(EVENTS_REJECTED).select("record_id"), "record_id", "left_semi"
    )
    rejected = kept.groupBy("source_file").agg(F.count("*").alias("num_rejected"))
    return accepted.join(rejected, "source_file", "full_outer").fillna(0)


def _write_ledger(warehouse: Warehouse, batch: _Batch, counts: DataFrame, account: Account) -> None:
    by_file = {row["source_file"]: row for row in counts.collect()}
    rows, sums = [], {"accepted": 0, "rejected": 0, "duplicates": 0}
    for file in batch.files:
        num_records, row = batch.num_records[file.uri], by_file.get(file.uri)
        found = {name: row[f"num_{name}"] if row else 0 for name in sums}
        if num_records != sum(found.values()):
            raise UserError(
                f"'{file.uri}' has {num_records} records but {found} were found in the tables: it is not marked as ingested, run ingest again"
            )
        sums = {name: sums[name] + found[name] for name in sums}
        numbers = (num_records, found["accepted"], found["rejected"], found["duplicates"])
        rows.append((file.uri, file.num_bytes, file.modified_at, *numbers, account.started_at, account.run_id))
    warehouse.upsert(INGESTED_FILES, warehouse.spark.createDataFrame(rows, INGESTED_FILES.schema), "source_file")
    account.rows_in = {"files": len(batch.files), "records": sum(batch.num_records.values())}
    account.rows_out = {"events": sums["accepted"], "duplicates": sums["duplicates"], "rejected": sums["rejected"]}
    account.rejected = dict(sorted(batch.rejected.items()))
