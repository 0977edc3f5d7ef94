"""The export of each trade as an independent reader of that trade understands it, without the simulator."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class Read:
    """A record as understood by someone who knows the trade's export and nothing of the simulator."""

    user: str
    item: str
    time: int
    kind: str
    value: float | None
    session: str
    is_test: bool


def read_finance(row: list[str]) -> Read:
    _, card, at, kind, mcc, merchant, _, _, _, billed, _, terminal = row
    time = datetime.strptime(at, "%d.%m.%Y %H:%M:%S %z")
    user, merchant = filled(card, "user"), filled(merchant, "item")
    return Read(
        user,
        f"{mcc} {merchant}",
        int(time.timestamp()),
        kind,
        float(billed.replace(",", ".")),
        "",
        terminal.startswith("TEST"),
    )


def read_logistics(record: dict) -> Read:
    shipment, facility = record["shipment"], record["facility"]
    user = filled(shipment["customer"].get("account"), "user")
    item = f"{filled(facility.get('code'), 'item')}-{facility['scan_point']}"
    at = datetime.fromisoformat(filled(record.get("scanned_at"), "time"))
    assert at.tzinfo is not None
    is_test = record["device"]["id"].startswith("TEST")
    return Read(user, item, int(at.timestamp()), record["status"], shipment["weight_kg"], shipment["id"], is_test)


def read_health(row: list[str]) -> Read:
    encounter, patient, at, kind, code, result, _, ward = row
    time = datetime.strptime(filled(at, "time"), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=ZoneInfo("Europe/Berlin"))
    user, item = filled(patient, "user"), filled(code, "item")
    return Read(user, item, int(time.timestamp()), kind, float(result) if result else None, encounter, ward == "TEST")


class LackingError(Exception):
    pass


def filled(text: str | None, name: str) -> str:
    if not text:
        raise LackingError(f"missing_{name}")
    return text


def lines_of(path: Path) -> list[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode().splitlines()


def understood(trade: str, path: Path) -> list[tuple[str, Read | str]]:
    """Each line of a file, and its record or what is wrong with it."""
    lines = lines_of(path)
    if trade == "logistics":
        return [(line, _json_record(line)) for line in lines]
    delimiter, reader = {"finance": (";", read_finance), "health": ("|", read_health)}[trade]
    header, *rows = csv.reader(lines, delimiter=delimiter)
    found = []
    for line, row in zip(lines[1:], rows, strict=True):
        found.append((line, _row_record(reader, row) if len(row) == len(header) else "broken"))
    return found


def _row_record(reader, row: list[str]) -> Read | str:
    try:
        # The exports' time stands in the third column.
        filled(row[2], "time")
        return reader(row)
    except LackingError as lacking:
        return str(lacking)
    except ValueError:
        return "bad_time"


def _json_record(line: str) -> Read | str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return "broken"
    try:
        return read_logistics(record)
    except LackingError as lacking:
        return str(lacking)
    except ValueError:
        return "bad_time"
