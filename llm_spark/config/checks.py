"""How a setting is refused: the key, the value, what to give instead."""

from __future__ import annotations

from datetime import date

from llm_spark.errors import UsageError


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise UsageError(f"{key} is {value!r}: {remedy}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, key, value, f"choose one of {', '.join(allowed)}")


def is_date(text: str) -> bool:
    try:
        date.fromisoformat(str(text))
    except ValueError:
        return False
    return True
