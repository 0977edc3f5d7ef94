"""Tables printed for people, and rows for programs."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from llm_spark.errors import UsageError
from llm_spark.pipelines.query import print_query, print_table, print_tables
from llm_spark.schemas import RUNS
from llm_spark.tables.warehouse import TableState, Warehouse

QUERY = """
SELECT * FROM VALUES (1, 'a "b", c\nd', NULL, array(map('k', 1.5D)), TIMESTAMP'2025-01-02 03:04:05'),
(2, 'é', 0.5D, array(), NULL) AS v(id, text, share, deep, at) ORDER BY id
"""


def test_brackets_in_a_value_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[name]", "b"], [("[paid] a[/b]c :key:", None), (0.12345, 3)])
    printed = capsys.readouterr().out
    for text in ("[name]", "[paid] a[/b]c :key:", "NULL", "0.1235", "3"):
        assert text in printed


def test_tables_are_listed_with_their_files_size_and_the_versions_that_can_be_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = [
        TableState("events", 8, 12_345, datetime(2025, 1, 2), 3, 5 * 2**20 + 2**19, (0, 1, 2, 5, 7, 8)),
        TableState("runs", 0, 0, None, 0, 0, (0,)),
    ]
    print_tables(SimpleNamespace(states=lambda: states, root="nowhere"))  # type: ignore[arg-type]
    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert lines == [
        ["events", "8", "12,345", "2025-01-02 00:00:00", "3", "5.5 MiB", "0-2, 5, 7-8"],
        ["runs", "0", "0", "", "0", "0 B", "0"],
    ]


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """With one table, which nobody asks."""
    warehouse = Warehouse(spark, str(tmp_path_factory.mktemp("queried")))
    warehouse.create(RUNS)
    return warehouse


def test_rows_are_printed_as_json_lines(warehouse: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    print_query(warehouse, QUERY, "json", 10)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"id": 1, "text": 'a "b", c\nd', "share": None, "deep": [{"k": 1.5}], "at": "2025-01-02 03:04:05"},
        {"id": 2, "text": "é", "share": 0.5, "deep": [], "at": None},
    ]


def test_rows_are_printed_as_csv_that_csv_readers_read(
    warehouse: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    print_query(warehouse, QUERY, "csv", 10)
    assert list(csv.reader(io.StringIO(capsys.readouterr().out, newline=""))) == [
        ["id", "text", "share", "deep", "at"],
        ["1", 'a "b", c\nd', "", "[{'k': 1.5}]", "2025-01-02 03:04:05"],
        ["2", "é", "0.5", "[]", ""],
    ]


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_no_more_rows_are_printed_than_asked_for_and_that_is_said(
    warehouse: Warehouse, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, form: str
) -> None:
    print_query(warehouse, "SELECT concat('row ', id) AS name FROM range(5) ORDER BY id", form, 2)
    printed = capsys.readouterr().out
    assert ("row 1" in printed, "row 2" in printed) == (True, False)
    assert "only the first 2 rows are shown" in caplog.text
    with pytest.raises(UsageError, match="--max-rows is 0: give 1 or more"):
        print_query(warehouse, "SELECT 1", form, 0)
