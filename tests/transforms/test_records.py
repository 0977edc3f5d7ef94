"""Lines of text into records: what is one JSON object, what is several, and names that could be the program's own."""

from __future__ import annotations

from pyspark.sql import SparkSession

from llm_spark.schemas.records import RAW, SOURCE_FILE, UNPARSABLE, data_columns
from llm_spark.transforms.records import parse_json_lines

ONE_VALUE = [
    '{"u": 1}',
    '{"u": 1},',
    '{"u": "a}{b"}',
    '{"u": "a\\"} {b"}',
    "{'u': 'a}{\"b'}",
    '{"u": {"v": [{"x": 1}, {"y": 2}]}}',
    '{"u": {"v": {}}}',
    '{"u": NaN, "v": [{}, {}]}',
    '{"u": "a},{b", "v": [{}, {"w": "}{"}]}',
]
SEVERAL = [
    '{"u": 1}{"u": 2}',
    '{"u": 1} \t {"u": 2}',
    '{"u": "}"}{"u": 2',
    '{"u": 1}, {"u": 2}',
    '{"u": {"v": []}}{"u": {"v": []}}',
]


def test_a_line_of_several_objects_is_unparsable_and_braces_in_texts_or_arrays_are_no_second_object(
    spark: SparkSession,
) -> None:
    rows = [("file:/a", text) for text in [*ONE_VALUE, *SEVERAL]]
    lines = spark.createDataFrame(rows, f"{SOURCE_FILE} string, {RAW} string")
    found = {row[RAW]: row[UNPARSABLE] for row in parse_json_lines(lines, [("u",)]).collect()}
    assert found == {**dict.fromkeys(ONE_VALUE, False), **dict.fromkeys(SEVERAL, True)}


def test_fields_that_begin_with_an_underscore_are_the_datas(spark: SparkSession) -> None:
    names = ("_id", "_raw", "_source_file", "_unparsable", "_unread", "_record", "_metadata")
    text = ", ".join(f'"{name}": "{place}"' for place, name in enumerate(names))
    lines = spark.createDataFrame([("file:/a", f"{{{text}}}")], f"{SOURCE_FILE} string, {RAW} string")
    parsed = parse_json_lines(lines, [(name,) for name in names])
    assert data_columns(parsed.columns) == [*names]
    row = parsed.first()
    assert row is not None
    assert [row[name] for name in names] == [str(place) for place in range(len(names))]
    assert (row[SOURCE_FILE], row[UNPARSABLE]) == ("file:/a", False)
