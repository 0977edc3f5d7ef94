"""`llm-spark models`: what is asked for, before any Spark starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_spark import cli
from llm_spark.config import Config
from llm_spark.pipelines.registry import commands as models


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any]]:
    """The exit code of a command, and what it would have done: action, ids, reason, warehouse."""
    done: list[tuple[object, ...]] = []

    def without_spark(loaded: Config, work: Callable) -> None:
        work(loaded.warehouse)

    monkeypatch.setattr(cli, "_with_spark", without_spark)
    monkeypatch.setattr(models, "run_action", lambda where, name, ids, reason: done.append((name, ids, reason, where)))

    def ask(*words: str) -> tuple[int, Any]:
        done.clear()
        code = cli.main(["models", *words])
        return code, done[0] if done else None

    return ask


def test_without_an_action_models_are_listed_and_settings_may_stand_anywhere(asked: Callable) -> None:
    assert asked() == (0, ("list", [], "", "warehouse"))
    assert asked("warehouse=w") == asked("list", "warehouse=w") == (0, ("list", [], "", "w"))
    assert asked("compare", "m1", "warehouse=w", "m2") == (0, ("compare", ["m1", "m2"], "", "w"))
    assert asked("promote", "--reason", "it is better", "m1", "warehouse=w") == (
        0,
        ("promote", ["m1"], "it is better", "w"),
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["promote"], "`models promote` takes ID, and was given none"),
        (["promote", "m1", "m2"], "`models promote` takes ID, and was given m1, m2"),
        (["compare", "m1", "m2", "m3"], r"`models compare` takes ID [ID], and was given m1, m2, m3"),
        (["rollback", "m1"], "`models rollback` takes no ID, and was given m1"),
        (["promot", "m1"], "invalid choice: 'promot'"),
        (["rollback", "--force"], "unrecognized arguments: --force"),
    ],
)
def test_a_wrong_command_is_refused_with_code_2(
    asked: Callable, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert asked(*words) == (2, None)
    assert complaint in capsys.readouterr().err
