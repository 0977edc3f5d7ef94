"""User ids replaced by keyed hashes (HMAC-SHA-256, RFC 2104), and what else would tell them.

The key stands in the pickled body of an Arrow UDF alone: an expression over a literal key would show it in every plan and event log.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as t

NUM_HEX_DIGITS = 32
MIN_TELLING_CHARS = 5
"""An id shorter than this is not looked for in other text: `12` is a user's id, a price and a day."""

_FINGERPRINT_OF = b"llm_spark pseudonym key"


class Pseudonyms:
    """A key, and the columns made under it. Its repr does not show the key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"Pseudonyms({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell keys apart and tell nothing of them."""
        return hmac.digest(self._key, _FINGERPRINT_OF, "sha256").hex()[:16]

    def of(self, text: Column) -> Column:
        """The first 32 hexadecimal digits (128 bits) of each text's HMAC-SHA-256; null for null."""
        return _keyed(self._key)(text)


def _keyed(key: bytes) -> Callable[[Column], Column]:
    def pseudonym(texts: pa.Array) -> pa.Array:
        known: dict[str | None, str | None] = {None: None}
        for text in texts.unique().to_pylist():
            if text is not None:
                known[text] = hmac.digest(key, text.encode(), "sha256").hex()[:NUM_HEX_DIGITS]
        return pa.array([known[text] for text in texts.to_pylist()], pa.string())

    pseudonym.__annotations__ = {"texts": pa.Array, "return": pa.Array}
    made: Any = F.arrow_udf
    return made(pseudonym, t.StringType())


def hide_users(
    judged: DataFrame, pseudonyms: Pseudonyms, attribute_names: list[str], derived: Collection[str]
) -> DataFrame:
    """Replace `user_id` and all that tells it in judged records.

    `session_key` becomes its own keyed hash, as do the attributes named in `derived`, which are made of the user's column. In item, event
    type and the other attributes an id of 5 characters or more is replaced where it occurs (in item and event type: where it stands by
    itself). The raw record gives way to its length and keyed hash. `file_tells` becomes true where the file's name holds the id.
    """
    raw_user, hidden = F.col("_raw_user"), F.col("user_id")
    named = judged.withColumns({"_raw_user": F.col("user_id"), "user_id": pseudonyms.of(F.col("user_id"))})
    attributes = [
        column
        for name in attribute_names
        for column in (
            F.lit(name),
            pseudonyms.of(F.col("attributes")[name])
            if name in derived
            else _redacted(F.col("attributes")[name], raw_user, hidden, alone=False),
        )
    ]
    kept = F.concat(
        F.lit("withheld: "), F.length("raw").cast("string"), F.lit(" characters, HMAC "), pseudonyms.of(F.col("raw"))
    )
    return named.withColumns(
        {
            "session_key": pseudonyms.of(F.col("session_key")),
            "item_id": _redacted(F.col("item_id"), raw_user, hidden, alone=True),
            "event_type": _redacted(F.col("event_type"), raw_user, hidden, alone=True),
            "attributes": (F.create_map(*attributes) if attributes else F.col("attributes")).cast("map<string,string>"),
            "raw": kept,
            "file_tells": _tells(F.col("source_file"), raw_user),
        }
    ).drop("_raw_user")


def _pattern(raw_user: Column, alone: bool) -> Column:
    quoted = F.concat(F.lit(r"(?iu)\Q"), F.replace(raw_user, F.lit(r"\E"), F.lit(r"\E\\E\Q")), F.lit(r"\E"))
    if not alone:
        return quoted
    return F.concat(F.lit(r"(?<![\p{L}\p{N}])"), quoted, F.lit(r"(?![\p{L}\p{N}])"))


def _holds(text: Column, raw_user: Column) -> Column:
    # Compiling a pattern for each row is slow: this cheap test lets few through.
    long_enough = F.length(raw_user) >= MIN_TELLING_CHARS
    return F.coalesce(long_enough & F.contains(F.lower(text), F.lower(raw_user)), F.lit(False))


def _redacted(text: Column, raw_user: Column, hidden: Column, alone: bool) -> Column:
    replaced = F.regexp_replace(text, _pattern(raw_user, alone), hidden)
    return F.when(_holds(text, raw_user), replaced).otherwise(text)


def _tells(source_file: Column, raw_user: Column) -> Column:
    forms = (source_file, F.try_url_decode(source_file))
    tests = [_holds(form, raw_user) & F.regexp_like(form, _pattern(raw_user, alone=True)) for form in forms]
    return F.coalesce(tests[0] | tests[1], F.lit(False))


def shape(text: Column) -> Column:
    """What a text looks like without saying what it says: digits as 9, letters as a."""
    return F.regexp_replace(F.regexp_replace(F.substring(text, 1, 64), r"\p{N}", "9"), r"\p{L}", "a")


def derived_from(user_paths: list[tuple[str, ...]], paths: list[tuple[str, ...]]) -> bool:
    """Whether an expression over `paths` sees a column that the user's expression sees; a parent holds what is below it."""

    def overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        shared = min(len(one), len(other))
        return [part.lower() for part in one[:shared]] == [part.lower() for part in other[:shared]]

    return any(overlap(one, other) for one in user_paths for other in paths)
