"""Tables printed for people."""

from __future__ import annotations

import pytest

from llm_spark.pipelines.query import print_table


def test_brackets_in_a_value_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[name]", "b"], [("[paid] a[/b]c :key:", None), (0.12345, 3)])
    printed = capsys.readouterr().out
    for text in ("[name]", "[paid] a[/b]c :key:", "NULL", "0.1235", "3"):
        assert text in printed
