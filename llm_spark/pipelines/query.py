"""SQL over the tables, and what tables there are, printed to stdout."""

from __future__ import annotations

import csv
import json
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llm_spark.errors import UsageError
from llm_spark.logs import log
from llm_spark.schemas import PREDICTIONS
from llm_spark.tables.current import PREDICTIONS_CURRENT, PREDICTIONS_CURRENT_IS
from llm_spark.tables.warehouse import Warehouse, sql


def print_query(warehouse: Warehouse, query: str, form: str, max_rows: int) -> None:
    """Print the rows of a query as a table, CSV or JSON lines; at most `max_rows`, saying so where there are more."""
    if max_rows < 1:
        raise UsageError(f"--max-rows is {max_rows}: give 1 or more")
    result = sql(warehouse, query)
    rows = result.limit(max_rows + 1).collect()
    if len(rows) > max_rows:
        log.warning("only the first %d rows are shown: --max-rows shows more", max_rows)
        rows = rows[:max_rows]
    if form == "json":
        for row in rows:
            print(json.dumps(row.asDict(recursive=True), default=str))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(result.columns)
        writer.writerows([["" if value is None else value for value in row] for row in rows])
    else:
        print_table(result.columns, [tuple(row) for row in rows])


def print_tables(warehouse: Warehouse) -> None:
    """Every table that exists: version, rows, newest event, files, size, versions that can be read."""
    states = warehouse.states()
    if not states:
        log.info("no table is in the warehouse '%s' yet", warehouse.root)
        return
    rows = [
        (
            state.name,
            state.version,
            f"{state.num_rows:,}",
            state.newest_event or "",
            f"{state.num_files:,}",
            _size(state.num_bytes),
            _ranges(state.readable),
        )
        for state in states
    ]
    print_table(["table", "version", "rows", "newest event (UTC)", "files", "size", "readable versions"], rows)
    if PREDICTIONS.name in (state.name for state in states):
        log.info("`llm-spark sql` adds %s, %s", PREDICTIONS_CURRENT, PREDICTIONS_CURRENT_IS)


def _size(num_bytes: int) -> str:
    """In the largest binary unit of which there is at least one."""
    size, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{num_bytes} B"


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending whole numbers in words: `0-2, 5`."""
    ends = [
        number for place, number in enumerate(numbers) if place + 1 == len(numbers) or numbers[place + 1] != number + 1
    ]
    starts = [number for place, number in enumerate(numbers) if place == 0 or numbers[place - 1] != number - 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def print_table(columns: list[str], rows: list[tuple]) -> None:
    # Escaped or as Text, since rich would read [brackets] in a value as markup.
    table = Table(*[escape(column) for column in columns])
    for row in rows:
        table.add_row(*[Text(_shown(value)) for value in row])
    # Off a terminal the table must not be cut to an assumed width.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)


def _shown(value: object) -> str:
    if value is None:
        return "NULL"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
