"""User ids replaced by keyed hashes (HMAC-SHA-256, RFC 2104), and what else would tell them.

The key stands in the pickled body of an Arrow UDF alone: an expression over a literal key would show it in every plan and event log.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable
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
    """A key, and the columns made under it. Its repr does not show the key.

    `also`: the mapped columns, besides the user's, whose whole value is the id of a user.
    """

    def __init__(self, key: bytes, also: Iterable[str] = ()) -> None:
        self._key = key
        self.also = frozenset(also)

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

    Hashed whole are `session_key`, the attributes named in `derived`, which are made of the user's column, and what `pseudonyms.also` names.
    In item, event type and the other attributes an id of 5 characters or more is replaced where it occurs (in item and event type: where it
    stands by itself). The raw record gives way to its length and keyed hash. `telling_name` becomes the file's name where it holds the id.
    """
    decoded_user = F.when(_is_coded(F.col("user_id")), _decoded(F.col("user_id"))).otherwise(F.col("user_id"))
    named = judged.withColumns(
        {
            "_raw_user": F.col("user_id"),
            "_decoded_user": decoded_user,
            "user_id": pseudonyms.of(F.col("user_id")),
        }
    )
    whole = {"session", *pseudonyms.also, *(f"attributes.{name}" for name in derived)}

    def hidden(name: str, text: Column, alone: bool = False) -> Column:
        return pseudonyms.of(text) if name in whole else _redacted(text, alone)

    attributes = [
        column
        for name in attribute_names
        for column in (F.lit(name), hidden(f"attributes.{name}", F.col("attributes")[name]))
    ]
    kept = F.concat(
        F.lit("withheld: "), F.length("raw").cast("string"), F.lit(" characters, HMAC "), pseudonyms.of(F.col("raw"))
    )
    return named.withColumns(
        {
            "session_key": hidden("session", F.col("session_key")),
            "item_id": hidden("item", F.col("item_id"), alone=True),
            "event_type": hidden("type", F.col("event_type"), alone=True),
            "attributes": (F.create_map(*attributes) if attributes else F.col("attributes")).cast("map<string,string>"),
            "raw": kept,
            "telling_name": _telling_name(F.col("source_file")),
        }
    ).drop("_raw_user", "_decoded_user")


def _is_coded(text: Column) -> Column:
    """Whether a text may hold URL-encoded characters."""
    return F.contains(text, F.lit("%")) | F.contains(text, F.lit("+"))


def _decoded(text: Column) -> Column:
    """URL-decoded twice, as a URL inside another one is encoded. A `+` stays, for it may stand for itself."""
    for _ in range(2):
        escaped = F.regexp_replace(text, r"%(?![0-9a-fA-F]{2})", "%25")
        text = F.try_url_decode(F.replace(escaped, F.lit("+"), F.lit("%2B")))
    return text


def _pattern(user: Column, alone: bool) -> Column:
    quoted = F.concat(F.lit(r"(?iu)\Q"), F.replace(user, F.lit(r"\E"), F.lit(r"\E\\E\Q")), F.lit(r"\E"))
    # A blank may be encoded as a plus.
    quoted = F.regexp_replace(quoted, "[ +]", r"\\E[ +]\\Q")
    if not alone:
        return quoted
    return F.concat(F.lit(r"(?<![\p{L}\p{N}])"), quoted, F.lit(r"(?![\p{L}\p{N}])"))


def _holds(text: Column, user: Column) -> Column:
    # Compiling a pattern for each row is slow: this cheap test lets few through.
    long_enough = F.length(user) >= MIN_TELLING_CHARS
    return F.coalesce(long_enough & F.contains(F.lower(text), F.lower(user)), F.lit(False))


def _holds_decoded(text: Column, user: Column) -> Column:
    return _holds(F.translate(text, "+", " "), F.translate(user, "+", " "))


def _redacted(text: Column, alone: bool) -> Column:
    """The text with a pseudonym for the id in it. One that holds the id URL-encoded becomes its decoded form."""
    user, decoded_user, hidden = F.col("_raw_user"), F.col("_decoded_user"), F.col("user_id")
    plain = F.when(_holds(text, user), F.regexp_replace(text, _pattern(user, alone), hidden)).otherwise(text)
    decoded = _decoded(plain)
    replaced = F.regexp_replace(decoded, _pattern(decoded_user, alone), hidden)
    is_told = _holds_decoded(decoded, decoded_user) & (replaced != decoded)
    redecoded = F.when(is_told, replaced).otherwise(plain)
    return F.when(_is_coded(text) | _is_coded(user), redecoded).otherwise(plain)


# Folders that number a time or a part, which an id of few digits may equal by chance.
_NUMBERED = r"(?:[^/=]*[_-])?(?:y|yy|yyyy|year|quarter|m|mm|month|week|d|dd|day|date|dt|ds|h|hh|hour|min|minute|part|partition|shard|bucket)="


def _telling_name(source_file: Column) -> Column:
    """The file's name with `…` for the id that it holds; null where it holds none. In a folder `name=<id>` an id of any length is one."""

    def hidden(name: Column, user: Column, holds: Column) -> Column:
        alone = _pattern(user, alone=True)
        folder = F.concat(F.lit(rf"(?iu)(/(?!{_NUMBERED})[^/=]+=)"), _pattern(user, alone=False), F.lit("(?=/|$)"))
        is_folder = F.contains(F.concat(F.lower(name), F.lit("/")), F.concat(F.lit("="), F.lower(user), F.lit("/")))
        in_text = F.when(holds & F.regexp_like(name, alone), F.regexp_replace(name, alone, F.lit("…")))
        in_folder = F.when(is_folder & F.regexp_like(name, folder), F.regexp_replace(name, folder, F.lit("$1…")))
        return F.coalesce(in_text, in_folder)

    user, decoded_user, decoded = F.col("_raw_user"), F.col("_decoded_user"), _decoded(source_file)
    is_coded = _is_coded(source_file) | _is_coded(user)
    return F.coalesce(
        hidden(source_file, user, _holds(source_file, user)),
        F.when(is_coded, hidden(decoded, decoded_user, _holds_decoded(decoded, decoded_user))),
    )


def shape(text: Column) -> Column:
    """What a text looks like without saying what it says: digits as 9, letters as a."""
    return F.regexp_replace(F.regexp_replace(F.substring(text, 1, 64), r"\p{N}", "9"), r"\p{L}", "a")


def derived_from(user_paths: list[tuple[str, ...]], paths: list[tuple[str, ...]]) -> bool:
    """Whether an expression over `paths` sees a column that the user's expression sees; a parent holds what is below it."""

    def overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        shared = min(len(one), len(other))
        return [part.lower() for part in one[:shared]] == [part.lower() for part in other[:shared]]

    return any(overlap(one, other) for one in user_paths for other in paths)
