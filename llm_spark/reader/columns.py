"""Which Parquet types become tensors, how the files' types are reconciled, and how Arrow data becomes that type.

Read from the Arrow columnar format (https://arrow.apache.org/docs/format/Columnar.html): a list array is int32 or int64
offsets into one values array, which is just what a ragged tensor is. Nothing here copies values unless they must change
(nulls, a wider type).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import ColumnError, ReadError
from .storage import first_line

Fill = int | float | str | bool


@dataclass(frozen=True)
class Column:
    """One column as it is delivered: `type` is a list of numbers, a number, a boolean, a time, or large text or binary."""

    name: str
    kind: Literal["ragged", "scalar", "text"]
    type: pa.DataType
    fill: Fill | None

    @property
    def value_type(self) -> pa.DataType:
        return self.type.value_type if self.kind == "ragged" else self.type


def resolve_columns(
    names: Sequence[str], schemas: Mapping[str, pa.Schema], fill_values: Mapping[str, Fill]
) -> list[Column]:
    """The type in which each named column is delivered, reconciled over the schemas of all files.

    A column that some files lack counts as null there; one in which a writer saw only nulls or empty lists has the other
    files' type. Numbers are widened to the type that holds all the files' values.

    Raises:
        ColumnError: a column that no file has or gives a type, a type that no tensor holds, types that do not go
        together, a fill value that the column's type does not hold.
    """
    unknown = sorted(set(fill_values) - set(names))
    if unknown:
        raise ColumnError(f"fill_values names {unknown}, which are not among the columns read: {list(names)}")
    if len(set(names)) != len(names) or not names:
        raise ColumnError(f"columns must be a non-empty list of distinct names, not {list(names)}")
    return [_resolve(name, schemas, fill_values.get(name)) for name in names]


def _resolve(name: str, schemas: Mapping[str, pa.Schema], fill: Fill | None) -> Column:
    resolved: pa.DataType | None = None
    resolved_in = ""
    for file, schema in schemas.items():
        index = schema.get_all_field_indices(name)
        if len(index) > 1:
            raise ColumnError(f"column '{name}' stands {len(index)} times in {file}: rename one of them in the table")
        if not index or pa.types.is_null(schema.field(index[0]).type):
            continue
        delivered = _delivered_type(name, schema.field(index[0]).type, file)
        if resolved is None:
            resolved, resolved_in = delivered, file
        elif delivered != resolved:
            common = _common_type(resolved, delivered)
            if common is None:
                raise ColumnError(
                    f"column '{name}' is {resolved} in {resolved_in} but {delivered} in {file}: "
                    "rewrite the table with one type"
                )
            resolved = common
    if resolved is None or _is_list_of_nulls(resolved):
        present = sorted({field for schema in schemas.values() for field in schema.names})
        if name not in present:
            raise ColumnError(f"no column '{name}' in the files: those present are {present}")
        raise ColumnError(
            f"column '{name}' holds nothing but nulls or empty lists in all files, which leaves its type open: "
            "write it with a type, such as list<int64>"
        )
    if _is_text(resolved):
        # 64-bit offsets, so that a buffer may hold more than 2 GB of it.
        column = Column(name, "text", pa.large_string() if _is_string(resolved) else pa.large_binary(), fill)
    else:
        column = Column(name, "ragged" if _is_list(resolved) else "scalar", resolved, fill)
    _require_fill(column)
    return column


def _require_fill(column: Column) -> None:
    if column.fill is None:
        return
    fits, delivered = False, _as_delivered(column.value_type)
    with suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        as_held = pa.scalar(column.fill, delivered).as_py()
        # A fraction may be rounded as any float is, but not to infinity; Arrow itself refuses integers that would be.
        rounds = pa.types.is_floating(delivered) and math.isfinite(as_held) == math.isfinite(float(column.fill))
        fits = column.kind == "text" or rounds or as_held == column.fill
    if not fits:
        raise ColumnError(
            f"fill_values gives {column.fill!r} for column '{column.name}', which {delivered} does not hold: "
            "give a value of that type"
        )


def _as_delivered(data_type: pa.DataType) -> pa.DataType:
    """The integer that a date or time is delivered as; every other type itself."""
    if not pa.types.is_temporal(data_type):
        return data_type
    return pa.int32() if data_type.bit_width == 32 else pa.int64()


def _delivered_type(name: str, stored: pa.DataType, file: str) -> pa.DataType:
    if pa.types.is_dictionary(stored):
        stored = stored.value_type
    # delta-rs stores view types; they hold the same values.
    if pa.types.is_string_view(stored):
        return pa.string()
    if pa.types.is_binary_view(stored):
        return pa.binary()
    if _is_list(stored):
        value = stored.value_type
        if not (_is_number(value) or pa.types.is_null(value)):
            raise ColumnError(
                f"column '{name}' is {stored} in {file}: only lists of integers or floats become ragged tensors; "
                "flatten or cast it"
            )
        return pa.list_(value)
    if pa.types.is_temporal(stored):
        return stored
    if pa.types.is_integer(stored) or pa.types.is_floating(stored) or pa.types.is_boolean(stored) or _is_text(stored):
        return stored
    raise ColumnError(
        f"column '{name}' is {stored} in {file}, which has no tensor form: select its fields as columns of their own, "
        "or cast it to a number, a string or a list of numbers"
    )


def _common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if _is_list(a) and _is_list(b):
        value = _common_type(a.value_type, b.value_type)
        if value is None:
            return None
        return pa.list_(value)
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if _is_number(a) and _is_number(b):
        wider = pa.from_numpy_dtype(np.promote_types(a.to_pandas_dtype(), b.to_pandas_dtype()))
        # int64 with uint64 would become float64 and lose digits.
        return wider if pa.types.is_floating(a) or pa.types.is_floating(b) or pa.types.is_integer(wider) else None
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and (a.tz is None) == (b.tz is None):
        units = ["s", "ms", "us", "ns"]
        return pa.timestamp(max(a.unit, b.unit, key=units.index), a.tz)
    if _is_text(a) and _is_text(b) and _is_string(a) == _is_string(b):
        return pa.large_string() if _is_string(a) else pa.large_binary()
    return None


def conform(table: pa.Table, columns: Sequence[Column], where: str) -> pa.RecordBatch:
    """The columns of one row group in their travelling form, without nulls outside text; absent columns count as null.

    A list of numbers travels as large_binary, the bytes of its values: the same buffers by another name, but Arrow
    takes and joins binary rows by one memcpy each, four times as fast as lists.

    Raises:
        ColumnError: an integer is null and no fill value was given.
        ReadError: a value does not go into the type that the files have in common.
    """
    arrays = [_conform(table, column, where) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, names=[column.name for column in columns])


def no_rows(columns: Sequence[Column]) -> pa.RecordBatch:
    """A row group without rows, in its travelling form."""
    schema = pa.schema([(column.name, column.type) for column in columns])
    return conform(schema.empty_table(), columns, "no row group")


def values_of(array: pa.Array, column: Column) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The values of a travelling list column, sharing its memory, and the offsets of its rows in them, from 0."""
    _, offsets_buffer, bytes_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    num_bytes = column.value_type.bit_width // 8
    offsets = offsets >> (num_bytes.bit_length() - 1)  # a division by 1, 2, 4 or 8, at a fifth of the time
    first, last = int(offsets[0]), int(offsets[-1])
    values = pa.Array.from_buffers(column.value_type, last - first, [None, bytes_buffer], offset=first)
    return values, offsets - first


def _conform(table: pa.Table, column: Column, where: str) -> pa.Array:
    if column.name in table.column_names:
        chunks = table.column(column.name)
        if column.kind == "text":
            chunks = chunks.cast(column.type)
        array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    else:
        array = pa.nulls(table.num_rows, column.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = pa.nulls(len(array), column.type)
    if column.kind == "ragged":
        return _conform_list(array, column, where)
    array = _cast(array, column.type, column, where)
    if pa.types.is_temporal(array.type):
        array = array.cast(_as_delivered(array.type))
    if column.kind == "text":
        return array if column.fill is None else array.fill_null(column.fill)
    return _fill_nulls(array, column, where)


def _conform_list(array: Any, column: Column, where: str) -> pa.Array:
    if array.null_count or not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        # A null list may cover values, a fixed-size one always does, a view's values stand in any order: flatten() sees
        # to all that, and so must the offsets. (Casting a view to a list gives other values in pyarrow 26.)
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = array.flatten()
    else:
        offsets, values = array.offsets.to_numpy(), array.values
    values = _cast(values, column.value_type, column, where)
    values = _fill_nulls(values, column, where)
    num_bytes = column.value_type.bit_width // 8
    byte_offsets = (offsets.astype(np.int64) + values.offset) * num_bytes
    return pa.Array.from_buffers(
        pa.large_binary(), len(array), [None, pa.py_buffer(byte_offsets), values.buffers()[1]], null_count=0
    )


def _cast(array: pa.Array, wider: pa.DataType, column: Column, where: str) -> pa.Array:
    if array.type == wider:
        return array
    try:
        return array.cast(wider)
    except pa.ArrowInvalid as error:
        raise ReadError(
            f"column '{column.name}' is {array.type} in {where} and {wider} over all files, which does not hold all its "
            f"values ({first_line(error)}): write the column with one type"
        ) from error


def _fill_nulls(array: pa.Array, column: Column, where: str) -> pa.Array:
    if not array.null_count:
        return array
    fill = column.fill
    if fill is None:
        if not pa.types.is_floating(array.type):
            raise ColumnError(
                f"column '{column.name}' has nulls or is absent in {where}: tensors of {array.type} have no null; "
                f"say what stands for it with fill_values={{'{column.name}': ...}}"
            )
        fill = float("nan")
    return pc.fill_null(array, pa.scalar(fill, array.type))


def _is_list(data_type: pa.DataType) -> bool:
    kinds = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(pa.types, kind)(data_type) for kind in kinds)


def _is_list_of_nulls(data_type: pa.DataType) -> bool:
    return _is_list(data_type) and pa.types.is_null(data_type.value_type)


def _is_number(data_type: pa.DataType) -> bool:
    return pa.types.is_integer(data_type) or pa.types.is_floating(data_type)


def _is_string(data_type: pa.DataType) -> bool:
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def _is_text(data_type: pa.DataType) -> bool:
    return _is_string(data_type) or pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type)
