"""Faults of the storage, told in one line that names the right place."""

from __future__ import annotations

import pytest

from llm_spark.tables.failures import storage_failure

DENIED = "java.nio.file.AccessDeniedException: {}: Permission denied"


@pytest.mark.parametrize("root", ["/data/warehouse", "file:///data/warehouse", "hdfs://name:8020/data/warehouse"])
def test_what_may_not_be_read_is_the_warehouse_only_where_it_lies_there(root: str) -> None:
    within = storage_failure(RuntimeError("Job aborted\n" + DENIED.format("/data/warehouse/tables/events")), root)
    assert within.startswith(f"warehouse '{root}': it may not be written or read by this account")
    elsewhere = storage_failure(RuntimeError("Job aborted\n" + DENIED.format("/data/logs/day 1")), root)
    assert elsewhere == f"{DENIED.format('/data/logs/day 1')}: let this account read and write it, then run this again"


def test_a_full_disk_is_told_wherever_it_is_and_another_error_is_not_the_storages() -> None:
    assert "the disk is full" in storage_failure(OSError("/scratch/x: No space left on device"), "/data/warehouse")
    assert storage_failure(ValueError("no such column"), "/data/warehouse") == ""
