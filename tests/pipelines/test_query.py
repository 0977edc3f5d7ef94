"""Tables printed for people."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import pytest

from llm_spark.pipelines.query import print_table, print_tables
from llm_spark.tables.warehouse import TableState


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
