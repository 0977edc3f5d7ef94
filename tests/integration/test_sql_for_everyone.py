"""The chain's tables as DuckDB, Polars and delta-rs read them, and README's queries over them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import duckdb
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from llm_spark.schemas import TABLES, Table
from llm_spark.tables.warehouse import sql
from tests.integration.conftest import Chain


def _delta_rs(path: str, table: Table) -> pa.Table:
    return DeltaTable(path).to_pyarrow_dataset().to_table()


def _polars(path: str, table: Table) -> pa.Table:
    return polars.read_delta(path).to_arrow()


def _duckdb(path: str, table: Table) -> pa.Table:
    """DuckDB's own Parquet reader over the files of the newest version; its extension for Delta must be fetched, and is not needed."""
    files = [unquote(urlparse(uri).path) for uri in DeltaTable(path).file_uris()]
    kinds = {field.name: field.dataType.simpleString().upper() for field in table.schema.fields}
    partitions = ", ".join(f"{name}: {kinds[name]}" for name in table.partition_by)
    options = f", hive_types = {{{partitions}}}" if partitions else ""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute(f"FROM read_parquet($files, hive_partitioning = true{options})", {"files": files})
        return rows.to_arrow_table()


READERS = {"duckdb": _duckdb, "polars": _polars, "delta-rs": _delta_rs}


def checksum(rows: Iterable[dict[str, Any]], table: Table) -> tuple[int, int]:
    """How many rows there are, and the sum of their hashes: whatever their order, every value of every column counts."""
    names = table.schema.names
    total, num_rows = 0, 0
    for row in rows:
        text = json.dumps([_plain(row[name]) for name in names], sort_keys=True)
        total += int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        num_rows += 1
    return num_rows, total % 2**64


def _plain(value: Any) -> Any:
    """The same for every reader: times as UTC microseconds, maps (some give lists of their entries) as mappings."""
    if isinstance(value, datetime):
        return int((value.replace(tzinfo=value.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    if isinstance(value, date):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        entries = [tuple(entry.values()) if _is_entry(entry) else entry for entry in value]
        if entries and all(isinstance(entry, tuple) and len(entry) == 2 for entry in entries):
            return {key: _plain(below) for key, below in entries}
        return [_plain(below) for below in entries]
    return value


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"key", "value"}


@pytest.fixture(scope="module")
def spark_checksums(chain: Chain) -> dict[str, tuple[int, int]]:
    """Of every table that the chain wrote."""
    return {
        table.name: checksum(chain.warehouse.read(table).toArrow().to_pylist(), table)
        for table in TABLES.values()
        if chain.warehouse.exists(table)
    }


@pytest.mark.parametrize("reader", READERS)
def test_another_reader_finds_in_every_table_the_rows_that_spark_finds(
    chain: Chain, spark_checksums: dict[str, tuple[int, int]], reader: str
) -> None:
    read: Callable[[str, Table], pa.Table] = READERS[reader]
    found = {
        name: checksum(read(chain.warehouse.path(TABLES[name]), TABLES[name]).to_pylist(), TABLES[name])
        for name in spark_checksums
    }
    assert found == spark_checksums
    for name in ("events", "sessions", "sequences", "evaluation", "models", "predictions", "runs"):
        assert found[name][0] > 0, f"{name} must have rows for this to mean anything"


def test_the_checksum_tells_a_changed_a_missing_and_a_doubled_row() -> None:
    table = TABLES["runs"]
    rows = [dict.fromkeys(table.schema.names) | {"run_id": str(number), "seconds": 0.5} for number in range(3)]
    whole = checksum(rows, table)
    assert checksum(rows[::-1], table) == whole
    for others in (rows[1:], [*rows, rows[0]], [rows[0] | {"seconds": 0.25}, *rows[1:]]):
        assert checksum(others, table) != whole


def readme_queries() -> list[str]:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", readme, re.DOTALL)
    commands = re.findall(r'^llm-spark sql .*?"(.+)"$', readme, re.MULTILINE)
    return [query.strip() for block in blocks for query in block.split(";") if query.strip()] + commands


def test_readme_has_queries() -> None:
    assert len(readme_queries()) >= 4


@pytest.mark.parametrize("query", readme_queries())
def test_a_query_of_the_readme_gives_rows(chain: Chain, query: str) -> None:
    likeliest = sql(chain.warehouse, "SELECT max_by(item_id, probability) FROM predictions_current").collect()[0][0]
    assert sql(chain.warehouse, query.replace("item-00042", likeliest)).limit(1).collect(), query
