"""`llm-spark report` as the command line reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_spark import cli
from llm_spark.config import Config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The stages that would have run, with their options, without Spark."""
    stages: list[tuple[str, dict[str, Any]]] = []

    def without_spark(loaded: Config, work: Callable) -> None:
        work(loaded.warehouse)

    def note(name: str, warehouse: str, loaded: Config, **options: Any) -> None:
        stages.append((name, options | {"num_users": loaded.report.num_users}))

    monkeypatch.setattr(cli, "_with_spark", without_spark)
    monkeypatch.setattr("llm_spark.pipelines.night.run_by_hand", note)
    return stages


def test_the_page_goes_where_output_says_or_else_into_the_warehouse(asked: list[tuple[str, dict[str, Any]]]) -> None:
    assert cli.main(["report", "--output", "page.html", "report.num_users=0"]) == 0
    assert cli.main(["report"]) == 0
    assert asked == [("report", {"output": "page.html", "num_users": 0}), ("report", {"num_users": 5})]


def test_no_other_stage_takes_an_output(
    asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["score", "--output", "page.html"]) == 2
    assert "unrecognized arguments: --output" in capsys.readouterr().err
    assert asked == []
