"""How columns of each type arrive, with nulls, empty lists, and files that differ."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_spark.reader import Batch, ColumnError, Ragged, RaggedReader, ReadError
from llm_spark.reader.batch import batches_of
from llm_spark.reader.columns import Column, conform, resolve_columns, values_of
from llm_spark.reader.schedule import Slab


def write(path: Path, **columns: pa.Array) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def one_batch(files: list[str], column: str, **settings: Any) -> Batch:
    [batch] = RaggedReader(files, [column], batch_rows=100, shuffle=False, **settings).epoch(0)
    return batch


def lists_of(ragged: Any) -> list[list[float]]:
    assert isinstance(ragged, Ragged)
    offsets = ragged.offsets.tolist()
    return [ragged.values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list], ids=["list", "large_list"])
@pytest.mark.parametrize(
    ("value_type", "dtype"),
    [
        (pa.int8(), torch.int8),
        (pa.int16(), torch.int16),
        (pa.int32(), torch.int32),
        (pa.int64(), torch.int64),
        (pa.uint8(), torch.uint8),
        (pa.uint16(), torch.uint16),
        (pa.uint32(), torch.uint32),
        (pa.uint64(), torch.uint64),
        (pa.float16(), torch.float16),
        (pa.float32(), torch.float32),
        (pa.float64(), torch.float64),
    ],
    ids=str,
)
def test_a_list_of_numbers_arrives_ragged_in_its_own_type(
    tmp_path: Path, make_list: Any, value_type: pa.DataType, dtype: torch.dtype
) -> None:
    rows = [[1, 2], [], [3]]
    as_stored = [[np.float16(v) for v in row] for row in rows] if pa.types.is_float16(value_type) else rows
    file = write(tmp_path / "a.parquet", x=pa.array(as_stored, make_list(value_type)))
    ragged = one_batch([file], "x")["x"]
    assert lists_of(ragged) == rows
    assert (ragged.values.dtype, ragged.offsets.dtype) == (dtype, torch.int64)
    assert ragged.padded(7).tolist() == [[1, 2], [7, 7], [3, 7]]
    assert ragged.padded().dtype == dtype


def test_padding_of_an_unsigned_type_may_be_its_largest_number() -> None:
    ragged = Ragged(torch.tensor([1, 65_534], dtype=torch.uint16), torch.tensor([0, 0, 2]))
    assert ragged.padded(65_535).tolist() == [[65_535, 65_535], [1, 65_534]]


def test_lengths_of_a_column_that_one_file_has_as_nothing_but_nulls_are_0_there(tmp_path: Path) -> None:
    full = write(tmp_path / "a.parquet", x=pa.array([[1, 2], [3]], pa.list_(pa.int32())))
    empty = write(tmp_path / "b.parquet", x=pa.nulls(2))
    reader = RaggedReader([full, empty], ["x"], batch_tokens=4, length_column="x", shuffle=False)
    assert sorted(row for batch in reader.epoch(0) for row in lists_of(batch["x"])) == [[], [], [1, 2], [3]]


EMPTY_LISTS = pa.array([[], None, []])
"""Of type list<null>: its writer saw no value."""


@pytest.mark.parametrize("settings", [{"batch_rows": 9}, {"batch_tokens": 9, "length_column": "x"}], ids=str)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("value_type", "dtype"), [(pa.int32(), torch.int32), (pa.float16(), torch.float16)], ids=str)
def test_a_file_of_nothing_but_empty_lists_has_the_type_of_the_others(
    tmp_path: Path, settings: dict, is_first: bool, value_type: pa.DataType, dtype: torch.dtype
) -> None:
    full = write(tmp_path / "a.parquet", x=pa.array([[np.float16(1)], [np.float16(2)]]).cast(pa.list_(value_type)))
    empty = write(tmp_path / "b.parquet", x=EMPTY_LISTS)
    files = [empty, full] if is_first else [full, empty]
    batches = list(RaggedReader(files, ["x"], shuffle=False, **settings).epoch(0))
    assert sorted(row for batch in batches for row in lists_of(batch["x"])) == [[], [], [], [1], [2]]
    assert {batch["x"].values.dtype for batch in batches} == {dtype}


def test_lists_of_nothing_but_nulls_have_the_type_of_the_other_files(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.parquet", x=pa.array([[None], [None, None]])),
        write(tmp_path / "b.parquet", x=pa.array([[1]])),
    ]
    assert lists_of(one_batch(files, "x", fill_values={"x": 7})["x"]) == [[7], [7, 7], [1]]
    with pytest.raises(ColumnError, match=r"column 'x' has nulls .*a.parquet.*fill_values={'x': ...}"):
        one_batch(files, "x")


@pytest.mark.parametrize("array", [EMPTY_LISTS, pa.nulls(3)], ids=["empty lists", "nulls"])
def test_a_column_that_no_file_gives_a_type_is_refused_with_the_remedy(tmp_path: Path, array: pa.Array) -> None:
    with pytest.raises(
        ColumnError, match=r"column 'x' holds nothing but nulls or empty lists in all files.*list<int64>"
    ):
        one_batch([write(tmp_path / "a.parquet", x=array)], "x")


def test_empty_lists_in_one_file_do_not_go_with_numbers_in_another(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.parquet", x=EMPTY_LISTS), write(tmp_path / "b.parquet", x=pa.array([1]))]
    with pytest.raises(ColumnError, match=r"'x' is list<.*null> in .*a.parquet but int64 in .*b.parquet: rewrite"):
        one_batch(files, "x")


def test_a_fixed_size_list_arrives_ragged_and_its_null_rows_are_empty(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", x=pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)))
    assert lists_of(one_batch([file], "x")["x"]) == [[1, 2], [], [3, 4]]


def test_a_list_view_arrives_ragged_whatever_the_order_of_its_values() -> None:
    views = pa.ListViewArray.from_arrays(
        pa.array([3, 0, 0], pa.int32()), pa.array([1, 2, 0], pa.int32()), pa.array([1, 2, 3, 4], pa.int32())
    )
    [column] = resolve_columns(["x"], {"here": pa.schema([("x", views.type)])}, {})
    values, offsets = values_of(conform(pa.table({"x": views}), [column], "here").column(0), column)
    assert (values.to_pylist(), offsets.tolist()) == ([4, 1, 2], [0, 1, 3, 3])


def test_a_null_list_is_empty_and_nulls_in_a_float_list_are_nan(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", x=pa.array([[1.5, None], None, [], [None]], pa.list_(pa.float32())))
    rows = lists_of(one_batch([file], "x")["x"])
    assert [[None if math.isnan(v) else v for v in row] for row in rows] == [[1.5, None], [], [], [None]]


def test_a_null_in_an_integer_list_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", x=pa.array([[1, None]], pa.list_(pa.int32())))
    with pytest.raises(
        ColumnError, match=r"column 'x' has nulls .* row group 0 of .*a.parquet.*fill_values={'x': ...}"
    ):
        one_batch([file], "x")
    assert lists_of(one_batch([file], "x", fill_values={"x": -1})["x"]) == [[1, -1]]


def test_scalars_arrive_as_tensors_in_their_own_type(tmp_path: Path) -> None:
    for values, arrow_type, dtype in [
        ([1, -2], pa.int32(), torch.int32),
        ([1.5, 2.5], pa.float64(), torch.float64),
        ([True, False], pa.bool_(), torch.bool),
    ]:
        tensor = one_batch([write(tmp_path / "a.parquet", x=pa.array(values, arrow_type))], "x")["x"]
        assert (tensor.tolist(), tensor.dtype) == (values, dtype)


def test_a_null_float_is_nan_and_a_null_integer_takes_its_fill_value(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", f=pa.array([None, 2.0]), i=pa.array([None, 7]))
    assert math.isnan(one_batch([file], "f")["f"][0])
    assert one_batch([file], "i", fill_values={"i": 5})["i"].tolist() == [5, 7]
    with pytest.raises(ColumnError, match="column 'i' has nulls"):
        one_batch([file], "i")


def test_times_arrive_as_integers_in_their_stored_unit(tmp_path: Path) -> None:
    moment = dt.datetime(1970, 1, 1, 0, 0, 2)
    file = write(
        tmp_path / "a.parquet",
        us=pa.array([moment], pa.timestamp("us", "UTC")),
        ms=pa.array([moment], pa.timestamp("ms")),
        day=pa.array([dt.date(1970, 1, 4)]),
    )
    assert [one_batch([file], name)[name].tolist() for name in ("us", "ms", "day")] == [[2_000_000], [2_000], [3]]


@pytest.mark.parametrize(
    "arrow_type", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_text_arrives_as_an_object_array_with_none_for_null(tmp_path: Path, arrow_type: pa.DataType) -> None:
    file = write(tmp_path / "a.parquet", x=pa.array(["a", None, "b"], pa.string()).cast(arrow_type))
    texts = one_batch([file], "x")["x"]
    assert isinstance(texts, np.ndarray)
    assert texts.dtype == object
    assert texts.tolist() == ["a", None, "b"]


def test_a_column_that_older_files_lack_is_null_there(tmp_path: Path) -> None:
    old = write(tmp_path / "old.parquet", id=pa.array([0]))
    new = write(
        tmp_path / "new.parquet",
        id=pa.array([1]),
        ragged=pa.array([[4]], pa.list_(pa.int32())),
        value=pa.array([2.0]),
        name=pa.array(["b"]),
        count=pa.array([3]),
    )
    files = [old, new]
    assert lists_of(one_batch(files, "ragged")["ragged"]) == [[], [4]]
    assert one_batch(files, "value")["value"].isnan().tolist() == [True, False]
    assert one_batch(files, "name")["name"].tolist() == [None, "b"]
    assert one_batch(files, "count", fill_values={"count": 0})["count"].tolist() == [0, 3]


def test_numbers_are_widened_where_files_differ(tmp_path: Path) -> None:
    narrow = write(tmp_path / "a.parquet", x=pa.array([[1]], pa.list_(pa.int32())), y=pa.array([1], pa.int32()))
    wide = write(tmp_path / "b.parquet", x=pa.array([[1 << 40]], pa.large_list(pa.int64())), y=pa.array([0.5]))
    assert lists_of(one_batch([narrow, wide], "x")["x"]) == [[1], [1 << 40]]
    assert one_batch([narrow, wide], "y")["y"].tolist() == [1.0, 0.5]


LARGE_ID = 2**53 + 1
"""No double is this."""


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (pa.array([LARGE_ID]), pa.array([0.5])),
        (pa.array([[LARGE_ID]]), pa.array([[0.5]])),
        (pa.array([10**15], pa.timestamp("s")), pa.array([1], pa.timestamp("ns"))),
    ],
    ids=["numbers", "lists", "times"],
)
def test_a_value_that_does_not_go_into_the_common_type_is_named_by_column_and_file(
    tmp_path: Path, narrow: pa.Array, wide: pa.Array
) -> None:
    files = [write(tmp_path / "a.parquet", x=narrow), write(tmp_path / "b.parquet", x=wide)]
    with pytest.raises(ReadError, match=r"^column 'x' is .* in row group 0 of .*a.parquet and .*with one type$"):
        one_batch(files, "x")


FILLED = {
    "i": pa.int32(),
    "u": pa.uint8(),
    "f": pa.float32(),
    "b": pa.bool_(),
    "s": pa.string(),
    "t": pa.timestamp("s"),
}


@pytest.mark.parametrize(
    ("column", "fill"),
    [
        *[("i", 0.5), ("i", "7"), ("i", 2**31), ("i", math.nan), ("i", True), ("u", -1), ("u", 256)],
        *[("f", 2**24 + 1), ("f", 1e300), ("f", "1"), ("b", 2), ("s", 5), ("t", 0.5), ("l", 0.5)],
    ],
)
def test_a_fill_value_that_the_column_does_not_hold_is_refused_at_once(
    tmp_path: Path, column: str, fill: int | float | str
) -> None:
    columns = {name: pa.nulls(1, arrow_type) for name, arrow_type in FILLED.items()}
    file = write(tmp_path / "a.parquet", **columns, l=pa.array([[None]], pa.list_(pa.int16())))
    with pytest.raises(
        ColumnError, match=rf"gives {re.escape(repr(fill))} for column '{column}', which .* does not hold"
    ):
        RaggedReader([file], [column], batch_rows=1, fill_values={column: fill})


def test_a_fill_value_that_the_column_holds_stands_for_null(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", **{name: pa.nulls(1, arrow_type) for name, arrow_type in FILLED.items()})
    fills = {"i": 2.0, "u": 255, "f": 0.1, "b": True, "s": "none", "t": -1}
    [batch] = RaggedReader([file], list(FILLED), batch_rows=1, fill_values=fills).epoch(0)
    assert {name: batch[name].tolist() for name in fills} == {
        name: pytest.approx([fill]) if name == "f" else [fill] for name, fill in fills.items()
    }
    infinite = one_batch([file], "f", fill_values={"f": -math.inf})["f"]
    assert infinite.tolist() == [-math.inf]


def test_text_of_more_than_2_gb_may_be_joined_for_its_offsets_are_of_64_bits() -> None:
    text = pa.table({"x": pa.array(["a", None])})
    [column] = resolve_columns(["x"], {"here": text.schema}, {})
    [array] = conform(text, [column], "here").columns
    assert (array.type, array.to_pylist()) == (pa.large_string(), ["a", None])


def test_files_whose_types_do_not_go_together_are_both_named(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.parquet", x=pa.array([1])), write(tmp_path / "b.parquet", x=pa.array(["one"]))]
    with pytest.raises(ColumnError, match=r"'x' is int64 in .*a.parquet but string in .*b.parquet: rewrite"):
        one_batch(files, "x")


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (pa.array([{"a": 1}]), "struct<a: int64>"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "map<string, int64"),
        (pa.array([["text"]]), "list<"),
        (pa.array([[[1]]]), "list<"),
    ],
    ids=["struct", "map", "list of text", "list of lists"],
)
def test_a_type_that_no_tensor_holds_is_refused_by_name(tmp_path: Path, array: pa.Array, shown: str) -> None:
    with pytest.raises(ColumnError, match=f"column 'x' is {shown}"):
        one_batch([write(tmp_path / "a.parquet", x=array)], "x")


def test_a_missing_column_is_refused_with_those_present(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", tokens=pa.array([1]), label=pa.array([1]))
    with pytest.raises(ColumnError, match=r"no column 'token' in the files: those present are \['label', 'tokens'\]"):
        one_batch([file], "token")


def test_an_unshuffled_list_column_shares_the_memory_that_arrow_read() -> None:
    table = pa.table({"x": pa.array([[1, 2], [3], [4]], pa.list_(pa.int32()))})
    columns = [Column("x", "ragged", pa.list_(pa.int32()), None)]
    rows = conform(table, columns, "here").slice(1)
    with ThreadPoolExecutor(1) as ahead:
        [batch] = batches_of([rows], Slab(0, [0], None, np.array([0, 2])), columns, ahead)
    address_of_3 = table["x"].chunk(0).values.buffers()[1].address + 2 * 4
    assert batch["x"].values.data_ptr() == address_of_3
    assert lists_of(batch["x"]) == [[3], [4]]


def test_padding_puts_the_value_behind_each_row() -> None:
    ragged = Ragged(torch.tensor([5, 6, 7]), torch.tensor([0, 2, 2, 3]))
    assert ragged.padded(9).tolist() == [[5, 6], [9, 9], [7, 9]]
    assert ragged.padding_share == 0.5
    assert ragged.lengths.tolist() == [2, 0, 1]


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_a_column_of_nothing_but_empty_lists_is_delivered_empty(tmp_path: Path, pool: Any) -> None:
    lists = pa.array([[], None, []] * 4, pa.list_(pa.float32()))
    pq.write_table(pa.table({"x": lists}), tmp_path / "a.parquet", row_group_size=5)
    [batch] = RaggedReader([tmp_path / "a.parquet"], ["x"], batch_rows=12, pool=pool).epoch(0)
    assert lists_of(batch["x"]) == [[]] * 12
    assert batch["x"].values.dtype == torch.float32
    assert batch["x"].padded().shape == (12, 0)
