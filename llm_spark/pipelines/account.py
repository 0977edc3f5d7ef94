"""The account that each stage gives of itself, and its row in `runs`."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from llm_spark.logs import log
from llm_spark.schemas import DATA_QUALITY, RUNS, Table
from llm_spark.tables.warehouse import Warehouse

DONE, REFUSED, FAILED = "done", "refused", "failed"
"""How a run ends, as `runs` says it."""


@dataclass(frozen=True)
class Check:
    """One measurement of a run, for the table `data_quality`; the fields are its columns."""

    name: str
    subject: str
    value: float
    limit: float | None = None
    severity: str = "info"
    detail: str = ""


@dataclass
class Account:
    """What a stage did: rows in, out, rejected by reason, table versions read and written, and remarks in words."""

    stage: str
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(tzinfo=None))
    nothing_to_do: str = ""
    """Why there was nothing to do; empty where something was done."""
    rows_in: dict[str, int] = field(default_factory=dict)
    rows_out: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    """What was measured of the data; recorded also where the stage then refuses to go on."""
    refusal: str = ""
    """What did not pass a gate although the rest was done; the stage ends with exit code 3."""
    night_id: str = ""
    """The night that it is a step of; empty by hand."""
    as_of_date: date | None = None
    """The setting as_of."""
    seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def wrote(self, warehouse: Warehouse, *tables: Table) -> None:
        self.written |= {table.name: warehouse.version(table) for table in tables}

    def close(self, warehouse: Warehouse) -> None:
        """Take the time, record the run unless nothing was done, and print the account."""
        self.seconds = time.monotonic() - self._began
        if self.nothing_to_do:
            log.info("%s: nothing to do, %s", self.stage, self.nothing_to_do)
            return
        self.record_checks(warehouse)
        self.record(warehouse, REFUSED if self.refusal else DONE, self.refusal)
        for line in self.lines():
            log.info("%s", line)

    def record_checks(self, warehouse: Warehouse) -> None:
        """Append the checks to `data_quality`, once."""
        if not self.checks:
            return
        rows = [
            (self.run_id, self.stage, c.name, c.subject, float(c.value), c.limit, c.severity, c.detail, self.started_at)
            for c in self.checks
        ]
        # One task: that of an empty part would leave a file that no version of the table lists.
        measured = warehouse.spark.createDataFrame(rows, DATA_QUALITY.schema).coalesce(1)
        warehouse.append(DATA_QUALITY, measured, f"checks-{self.run_id}")

    def lines(self) -> list[str]:
        def counts(numbers: dict[str, int]) -> str:
            return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in numbers.items())

        lines = [f"{self.stage}: {counts(self.rows_in)} in, {counts(self.rows_out)} out, {self.seconds:.1f} s"]
        if any(self.rejected.values()):
            lines.append(f"  rejected: {counts({reason: n for reason, n in self.rejected.items() if n})}")
        versions = [
            f"{how} {', '.join(f'{name} v{v}' for name, v in tables.items())}"
            for how, tables in (("read", self.read), ("wrote", self.written))
            if tables
        ]
        if versions:
            lines.append(f"  {'; '.join(versions)}")
        return lines + [f"  {remark}" for remark in self.remarks]

    def begin(self, what: str = "") -> None:
        """The stage has found something to do, and begins: a dry run ends here."""

    def record(self, warehouse: Warehouse, outcome: str, reason: str = "") -> None:
        """Append this run to `runs`, once."""
        self.seconds = self.seconds or time.monotonic() - self._began
        told = dataclasses.asdict(self)
        kept = {name: told[name] for name in ("rows_in", "rows_out", "rejected", "read", "written", "remarks")}
        account = json.dumps(kept)
        row = (self.run_id, self.stage, self.started_at, self.seconds, outcome, account)
        of_night = (reason or None, self.night_id or None, self.as_of_date)
        rows = warehouse.spark.createDataFrame([(*row, *of_night)], RUNS.schema).coalesce(1)
        warehouse.append(RUNS, rows, f"run-{self.run_id}")
