"""What ingest says of its records: the account, the checks, and the gate before any event is written."""

from __future__ import annotations

from pyspark.sql import functions as F

from llm_spark.config import IngestConfig
from llm_spark.errors import DataError
from llm_spark.pipelines.account import Account, Check
from llm_spark.pipelines.ingest_batch import Batch, FileCounts
from llm_spark.tables.raw import Unreadable
from llm_spark.transforms.missing import reasons_that_are_no_fault

MAX_FILES_CHECKED = 1_000
"""Files with rejected records that get rows of their own in data_quality; the totals count them all."""
NUM_FILES_SHOWN = 3


def account_for(batch: Batch, config: IngestConfig, account: Account) -> None:
    """Write the counts into the account and, by file and reason, into its checks."""
    total = batch.totals()
    account.rows_in = {"files": len(batch.files), "records": total.num_records}
    account.rows_out = {
        "events": total.num_accepted,
        "duplicates": total.num_duplicates,
        "rejected": total.num_rejected,
    }
    account.rejected = dict(sorted(total.rejected.items()))
    share = _num_faults(total, config) / total.num_records if total.num_records else 0.0
    severity = "error" if share > config.max_rejected_fraction else "info"
    account.checks += [
        Check("num_records", "all files", total.num_records),
        Check("num_accepted", "all files", total.num_accepted),
        Check("num_duplicates", "all files", total.num_duplicates),
        Check("fault_fraction", "all files", share, float(config.max_rejected_fraction), severity),
    ]
    account.checks += [_rejected("all files", reason, number) for reason, number in sorted(total.rejected.items())]
    worst = sorted(
        ((uri, counts) for uri, counts in batch.counts.items() if counts.num_rejected),
        key=lambda entry: (-entry[1].num_rejected, entry[0]),
    )
    for uri, counts in worst[:MAX_FILES_CHECKED]:
        account.checks += [_rejected(uri, reason, number) for reason, number in sorted(counts.rejected.items())]
    account.checks += [unreadable_check(file) for file in batch.unreadable]
    for column, keys in batch.lacking.items():
        remark = f"no file has it, so that it is null in every record ({', '.join(keys)})"
        account.checks.append(Check("missing_column", column, 1, 0.0, "warning", remark))
        account.remarks.append(f"column '{column}': {remark}")
    for changing in batch.changing:
        remark = "it changed while it was read: the next run reads it"
        account.checks.append(Check("changing_file", changing.uri, 1, 0.0, "warning", remark))
        account.remarks.append(f"'{changing.uri}': {remark}")
    for uri, counts in worst[:NUM_FILES_SHOWN]:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.rejected.most_common())
        account.remarks.append(f"rejected in '{uri}': {reasons}, of {counts.num_records:,}")
    if len(worst) > NUM_FILES_SHOWN:
        account.remarks.append(f"and in {len(worst) - NUM_FILES_SHOWN:,} files more: see data_quality")


def unreadable_check(file: Unreadable) -> Check:
    return Check("unreadable_file", file.uri, 1, 0.0, "error", file.detail)


def _rejected(subject: str, reason: str, number: int) -> Check:
    return Check("num_rejected", subject, number, detail=reason)


def _faults(total: FileCounts, config: IngestConfig) -> dict[str, int]:
    """What is rejected though the settings did not ask for it, by reason."""
    asked_for = reasons_that_are_no_fault(config.missing)
    return {reason: number for reason, number in total.rejected.items() if reason not in asked_for}


def _num_faults(total: FileCounts, config: IngestConfig) -> int:
    return sum(_faults(total, config).values())


def gate(batch: Batch, config: IngestConfig, is_hidden: bool, is_first: bool) -> None:
    """DataError where the files hold nothing acceptable, or more faults than `ingest.max_rejected_fraction`, or are the first and hold nothing."""
    total = batch.totals()
    if total.num_records == 0:
        if not is_first:
            return
        raise DataError(
            f"the {len(batch.files)} files hold no record, '{batch.files[0].path}' the first: check the export"
        )
    faults = _faults(total, config)
    if faults and total.num_rejected == total.num_records:
        reason = max(faults, key=lambda name: faults[name])
        shown = "" if is_hidden else f", for example '{_example(batch, reason)}'"
        raise DataError(
            f"none of {total.num_records:,} records was accepted; {faults[reason]:,} are {reason}{shown}{_remedy(reason, config)}"
        )
    if sum(faults.values()) / total.num_records > config.max_rejected_fraction:
        raise DataError(
            f"{sum(faults.values()):,} of {total.num_records:,} records are at fault, more than ingest.max_rejected_fraction "
            f"{config.max_rejected_fraction}: look at events_rejected; no event was written"
        )


def _example(batch: Batch, reason: str) -> str:
    row = batch.records.where(F.col("reason") == reason).select("raw", "detail").first()
    assert row is not None
    return (row["detail"] or row["raw"] or "")[:120]


def _remedy(reason: str, config: IngestConfig) -> str:
    if reason == "bad_time":
        return f": it does not match ingest.time_format '{config.time_format}'"
    if reason == "too_long":
        return ": raise ingest.max_record_chars if such records are right"
    return f": is ingest.format '{config.format}' right?" if reason == "unparsable" else ": check ingest.columns"
