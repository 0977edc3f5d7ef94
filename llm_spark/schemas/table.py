"""What a table is, and what several of them have in common."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import types as t

TEXT = t.StringType()
TEXTS = t.ArrayType(t.StringType())
INTS = t.ArrayType(t.IntegerType())
TIME = t.TimestampType()
LONG = t.LongType()


@dataclass(frozen=True)
class Table:
    """One Delta table: what a row is, its columns, how it is partitioned, and which stage writes it."""

    name: str
    comment: str
    written_by: str
    schema: t.StructType
    partition_by: tuple[str, ...] = ()
    rows_per_group: int = 0
    """Rows of a Parquet row group, 0 for what fits into 128 MiB."""
    seldom_repeated: tuple[str, ...] = ()
    """Columns of which hardly a value occurs twice in a file: Parquet would make a dictionary of them, find it useless and begin anew."""
    is_pinned: bool = False
    """Whether models pin versions of it, which then have to stay readable."""
    added_later: tuple[str, ...] = ()
    """Columns that tables of earlier versions of this program lack: null in their rows. A table that lacks any other is not read."""
    is_derived: bool = False
    """Whether its stage can write all of it anew from other tables."""

    @property
    def seldom_repeated_leaves(self) -> list[str]:
        """`seldom_repeated` by the names that Parquet has for where the values lie."""
        return [
            f"{name}.list.element" if isinstance(self.schema[name].dataType, t.ArrayType) else name
            for name in self.seldom_repeated
        ]

    @property
    def remedy(self) -> str:
        """What to do about a table that cannot be read, as the end of a sentence."""
        if self.is_derived:
            return (
                f"run `llm-spark {self.written_by}`, which writes it anew, or restore an earlier version of the table"
            )
        return "restore an earlier version of the table, or rename the columns"


def columns(*columns: tuple[str, t.DataType, str]) -> t.StructType:
    return t.StructType([t.StructField(name, kind, True, {"comment": comment}) for name, kind, comment in columns])


RUN_ID = ("run_id", TEXT, "the run that wrote this row")
MODEL_ID = ("model_id", TEXT, "the model, a row of models")
USER_ID = ("user_id", TEXT, "who, as in the raw log")
