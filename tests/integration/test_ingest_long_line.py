"""A line of 100 MB under the default settings: it costs itself and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from llm_spark.schemas import EVENTS, EVENTS_REJECTED
from tests.integration.ingesting import COLUMNS, Loaded, ingest

TIME = "2025-01-01T00:00:00Z"
NUM_BYTES = 100_000_000


def json_lines(filling: str) -> tuple[str, list[str]]:
    return "", [f'{{"user": "u", "item": "{item}", "time": "{TIME}"}}\n' for item in ("a", filling, "b")]


def csv_lines(filling: str) -> tuple[str, list[str]]:
    return "user,item,time\n", [f"u,{item},{TIME}\n" for item in ("a", filling, "b")]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "lines"), [("jsonl", json_lines), ("csv", csv_lines)])
def test_a_line_of_100_mb_is_too_long_and_its_neighbours_are_accepted(
    spark: SparkSession, loaded: Loaded, tmp_path: Path, form: str, lines: Callable
) -> None:
    header, records = lines("x" * NUM_BYTES)
    (tmp_path / f"a.{form}").write_text(header + "".join(records))
    config = loaded(f"ingest.paths=[{tmp_path}/a.{form}]", f"ingest.format={form}", *COLUMNS)
    warehouse, account = ingest(spark, config)
    assert account.rejected == {"too_long": 1}
    assert sorted(row["item_id"] for row in warehouse.read(EVENTS).collect()) == ["a", "b"]
    (long,) = warehouse.read(EVENTS_REJECTED).collect()
    # What a CSV record said, since the reader took it apart.
    beginning = records[1] if form == "jsonl" else '{"user":"u","item":"' + "x" * 1_000
    assert long["raw"] == beginning[:1_000]
    assert long["detail"].startswith("100,0")
