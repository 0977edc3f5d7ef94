"""`llm-spark sql`: which word is the query, before any Spark starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llm_spark import cli
from llm_spark.config import Config
from llm_spark.pipelines import query


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[tuple[str, str]]]]:
    """The exit code of a command, and what it would have asked: warehouse and query."""
    done: list[tuple[str, str]] = []

    def without_spark(loaded: Config, work: Callable) -> None:
        work(loaded.warehouse)

    monkeypatch.setattr(cli, "_with_spark", without_spark)
    monkeypatch.setattr(query, "print_query", lambda where, what, form, most: done.append((where, what)))

    def ask(*words: str) -> tuple[int, list[tuple[str, str]]]:
        return cli.main(["sql", *words]), done

    return ask


@pytest.mark.parametrize(
    "words",
    [
        ("SELECT a=1", "warehouse=w"),
        ("warehouse=w", "SELECT a=1"),
        ("SELECT a=1", "--format", "csv", "warehouse=w"),
        ("warehouse=w", "--max-rows", "5", "SELECT a=1"),
        ("--format", "csv", "warehouse=w", "--max-rows", "5", "SELECT a=1"),
        ("--max-rows", "5", "warehouse=w", "--format", "csv", "SELECT a=1"),
    ],
)
def test_settings_may_stand_before_the_query_or_after_it(asked: Callable, words: tuple[str, ...]) -> None:
    assert asked(*words) == (0, [("w", "SELECT a=1")])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["SELECT", "1"], "give one query, in quotes: got SELECT, 1"),
        (["warehouse=w"], "give one query, in quotes: there is none"),
    ],
)
def test_no_query_or_one_without_quotes_is_refused_with_code_2(
    asked: Callable, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert asked(*words) == (2, [])
    assert complaint in capsys.readouterr().err
