"""What a frame of raw records has beside the data's own columns, under a prefix that no data uses (`_id` and `_raw` are the data's)."""

from __future__ import annotations

from collections.abc import Iterable

INTERNAL = "__llm_spark_"

SOURCE_FILE = f"{INTERNAL}source_file"
"""The file's URI."""
RAW = f"{INTERNAL}raw"
"""The record's text; null where the format's reader took it apart."""
UNPARSABLE = f"{INTERNAL}unparsable"
"""True where the record could not be read into its columns."""
IS_HEADER = f"{INTERNAL}is_header"
"""True where the record repeats the file's header; for CSV alone."""


def data_columns(names: Iterable[str]) -> list[str]:
    """Those of the columns that the data brought."""
    return [name for name in names if not name.startswith(INTERNAL)]


def quoted(name: str) -> str:
    """A column's name as an expression that stands for it whatever is in it."""
    return "`" + name.replace("`", "``") + "`"
