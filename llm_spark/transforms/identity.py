"""Ids that are the same in every run: hashes of what makes a row that row."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

_SEPARATOR = "\x1f"


def stable_id(*parts: Column) -> Column:
    """Half a SHA-256, 32 hexadecimal digits, over text columns told apart by a separator. A null part is left out."""
    return F.substring(F.sha2(F.concat_ws(_SEPARATOR, *parts), 256), 1, 32)
