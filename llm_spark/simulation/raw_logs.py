"""Raw logs of a simulated process, with known troubles planted in them.

The profile of the trade says how a record is laid out. Each day (UTC) has `num_files_per_day` files,
`<stem>-<date>-<part>.jsonl` or `.csv` (with a header line), some gzipped.

Planted lines are extra: none replaces a clean event. Drop the lines that are broken, lack a field or have a bad time,
the bot's, and all but one of each set of equal lines, and what remains is exactly `Process.simulate()`. Late events are
clean events that stand in the file of a later day.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_spark.simulation.config import SECONDS_PER_DAY, SimulationConfig
from llm_spark.simulation.process import Events, Process
from llm_spark.simulation.profile import Mark, Record

ACCOUNT_NAME = "_simulation.json"
"""Beside the logs; begins with an underscore, so that Spark's file source passes it by."""

_ACCOUNT_BESIDE = f"{ACCOUNT_NAME}.tmp"

TROUBLES = ("duplicates", "late", "broken", "missing_user", "missing_item", "missing_time", "bad_time", "bot")

FORMATS = {"jsonl": ("jsonl",), "csv": ("csv",), "both": ("jsonl", "csv")}

_RATES = {
    "duplicates": "duplicate_rate",
    "late": "late_rate",
    "broken": "broken_rate",
    "missing_user": "missing_user_rate",
    "missing_item": "missing_item_rate",
    "missing_time": "missing_time_rate",
    "bad_time": "bad_time_rate",
    "bot": "bot_rate",
}
_OTHER_FILE_FRACTION = 0.3
_STREAM = 100


@dataclass(frozen=True)
class LogsWritten:
    """An exact account of what was written.

    `num_lines` (CSV headers not counted) = `num_clean_events` + all of `num_planted` but `late`, which are clean events
    themselves.
    """

    folder: str
    files: list[str]
    """Paths relative to `folder`, in order of day and part."""
    num_lines: int
    num_header_lines: int
    """One a CSV file."""
    num_clean_events: int
    num_users: int
    """Users with a clean event; the bot is none of them."""
    num_sessions: int
    """Sessions of clean events."""
    num_unsorted_files: int
    num_planted: dict[str, int]
    """Lines planted, by trouble (`TROUBLES`)."""
    bot_user_id: str


@dataclass(frozen=True)
class _Line:
    """A line, and where it goes."""

    file: int
    arrival_seconds: float
    text: str


def write_logs(config: SimulationConfig, folder: str | os.PathLike[str], fmt: str | None = None) -> LogsWritten:
    """Write the raw logs of `config` into `folder`, and an account of them into `_simulation.json` beside them.

    `fmt` is 'jsonl', 'csv', or 'both': then the files take turns, each event stands in one of them only, and the two
    kinds lie in the subfolders jsonl/ and csv/. Not given: what is usual in the profile's trade. The same config and
    `fmt` give the same bytes. Earlier output of this function is replaced, also where writing it was cut short.

    Raises ValueError where the profile is not written in `fmt`, or `folder` holds anything else than such output.
    """
    fmt = config.profile.formats[0] if fmt is None else fmt
    if fmt not in config.profile.formats:
        raise ValueError(f"fmt={fmt!r}: choose among {', '.join(config.profile.formats)}")
    folder = Path(folder)
    earlier_output = _earlier_output(folder)
    process = Process.draw(config)
    events = process.simulate()
    writer = _LogWriter(process, events, FORMATS[fmt])
    lines, num_planted = writer.lines()
    texts, num_unsorted = writer.file_texts(lines)

    account = LogsWritten(
        folder=str(folder),
        files=writer.files,
        num_lines=len(lines),
        num_header_lines=sum(kind == "csv" for kind in writer.kinds),
        num_clean_events=len(events),
        num_users=len(np.unique(events.user_N)),
        num_sessions=len(np.unique(events.session_N)),
        num_unsorted_files=num_unsorted,
        num_planted=num_planted,
        bot_user_id=process.bot_user_id,
    )
    for path in earlier_output:
        path.unlink()
    for subfolder in FORMATS["both"]:
        if (folder / subfolder).is_dir():
            (folder / subfolder).rmdir()
    folder.mkdir(parents=True, exist_ok=True)
    # The account goes first, so that a folder whose writing was cut short is known as ours by the next call.
    _write_account(folder, account, config, complete=False)
    for file, text in zip(writer.files, texts, strict=True):
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        data = text.encode()
        path.write_bytes(gzip.compress(data, compresslevel=6, mtime=0) if file.endswith(".gz") else data)
    _write_account(folder, account, config, complete=True)
    return account


class _LogWriter:
    """Turns clean events into lines of files, troubles included."""

    def __init__(self, process: Process, events: Events, kinds: tuple[str, ...]) -> None:
        config = process.config
        self.config = config
        self.profile = config.profile
        self.start_seconds = process.start_seconds
        self.rng = np.random.default_rng([config.seed, _STREAM])
        self.num_files = config.num_days * config.num_files_per_day
        self.kinds = [kinds[file % len(kinds)] for file in range(self.num_files)]
        # Days until a part comes again in the same format: an exact copy of a line must stand in a file of its own
        # format.
        self.days_to_same_kind = 1 if config.num_files_per_day % len(kinds) == 0 else 2
        zipped = self.rng.permutation(self.num_files) < round(config.gzip_file_rate * self.num_files)
        self.files = [self._file_name(file, len(kinds) > 1, bool(zipped[file])) for file in range(self.num_files)]

        self.num_events = len(events)
        self.day_N = (events.time_N - self.start_seconds) // SECONDS_PER_DAY
        self.time_N = events.time_N
        self.may_be_late_N = self.profile.may_be_late(events.event_type_N)
        marks, bot_marks = _marks(events), _bot_marks(process, events, self._num("bot"))
        records = self.profile.records(process, [*marks, *bot_marks])
        self.records = records[: len(marks)]
        self.bot_records = [(mark.time, record) for mark, record in zip(bot_marks, records[len(marks) :], strict=True)]

    def lines(self) -> tuple[list[_Line], dict[str, int]]:
        """All lines, and how many of each trouble are among them."""
        num_files_per_day = self.config.num_files_per_day
        file_N = self.day_N * num_files_per_day + self.rng.integers(num_files_per_day, size=self.num_events)
        arrival_N = self.time_N.astype(np.float64)

        late = self._choose("late", np.flatnonzero(self.may_be_late_N & (self.day_N < self.config.num_days - 1)))
        days_late = np.minimum(self.rng.integers(1, 3, size=len(late)), self.config.num_days - 1 - self.day_N[late])
        file_N[late] += days_late * num_files_per_day
        arrival_N[late] = self._some_time_of_day(file_N[late])
        lines = [
            self._line(int(file), arrival, record)
            for file, arrival, record in zip(file_N, arrival_N, self.records, strict=True)
        ]
        num_planted = {"late": len(late), "bot": len(self.bot_records)}

        copied = self._choose("duplicates", np.arange(self.num_events))
        copy_file = file_N[copied]
        other_file = copy_file + self.days_to_same_kind * num_files_per_day
        moves = (self.rng.random(len(copied)) < _OTHER_FILE_FRACTION) & (other_file < self.num_files)
        copy_arrival = np.where(
            moves, self._some_time_of_day(other_file), arrival_N[copied] + self.rng.random(len(copied)) * 60
        )
        copy_file = np.where(moves, other_file, copy_file)
        lines += [
            _Line(int(file), arrival, lines[event].text)
            for file, arrival, event in zip(copy_file, copy_arrival, copied, strict=True)
        ]
        num_planted["duplicates"] = len(copied)

        for trouble in ("broken", "missing_user", "missing_item", "missing_time", "bad_time"):
            planted: dict[str, _Line] = {}
            wanted = self._num(trouble)
            # Equal lines would count as one for whoever drops duplicates first: take other events where a corrupted
            # line is not new.
            for event in self.rng.permutation(self.num_events):
                if len(planted) == wanted:
                    break
                line = self._corrupted(trouble, int(file_N[event]), float(arrival_N[event]), self.records[event])
                planted.setdefault(line.text, line)
            lines += planted.values()
            num_planted[trouble] = len(planted)

        for time, record in self.bot_records:
            day = (time - self.start_seconds) // SECONDS_PER_DAY
            part = int(self.rng.integers(num_files_per_day))
            lines.append(self._line(day * num_files_per_day + part, float(time), record))
        return lines, {trouble: num_planted[trouble] for trouble in TROUBLES}

    def file_texts(self, lines: list[_Line]) -> tuple[list[str], int]:
        """The text of each file, and how many of them are out of order on purpose."""
        num_unsorted = round(self.config.unsorted_file_rate * self.num_files)
        unsorted = self.rng.permutation(self.num_files) < num_unsorted
        lines_of: list[list[_Line]] = [[] for _ in range(self.num_files)]
        for line in sorted(lines, key=lambda line: line.arrival_seconds):
            lines_of[line.file].append(line)
        texts = []
        for file, of_file in enumerate(lines_of):
            order = self.rng.permutation(len(of_file)) if unsorted[file] else range(len(of_file))
            header = self._csv_line(self.profile.header) if self.kinds[file] == "csv" else ""
            texts.append(header + "".join(of_file[at].text for at in order))
        return texts, num_unsorted

    def _file_name(self, file: int, in_subfolder: bool, zipped: bool) -> str:
        day, part = divmod(file, self.config.num_files_per_day)
        date = np.datetime64(self.start_seconds + day * SECONDS_PER_DAY, "s").astype("datetime64[D]")
        name = f"{self.profile.file_stem}-{date}-{part:02d}.{self.kinds[file]}{'.gz' if zipped else ''}"
        return f"{self.kinds[file]}/{name}" if in_subfolder else name

    def _num(self, trouble: str) -> int:
        rate: float = getattr(self.config, _RATES[trouble])
        return round(rate * self.num_events)

    def _choose(self, trouble: str, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.sort(self.rng.choice(candidates, min(self._num(trouble), len(candidates)), replace=False))

    def _some_time_of_day(self, file: NDArray[np.int64]) -> NDArray[np.float64]:
        day = file // self.config.num_files_per_day
        return self.start_seconds + (day + self.rng.random(len(file))) * SECONDS_PER_DAY

    def _line(self, file: int, arrival_seconds: float, record: Record) -> _Line:
        text = self._csv_line(record.values()) if self.kinds[file] == "csv" else _json_line(record)
        return _Line(file, arrival_seconds, text)

    def _corrupted(self, trouble: str, file: int, arrival_seconds: float, record: Record) -> _Line:
        if trouble == "broken":
            text = self._broken_csv(record) if self.kinds[file] == "csv" else self._broken_json(record)
            return _Line(file, arrival_seconds, text)
        if trouble == "bad_time":
            bad_time = str(self.rng.choice(self.profile.bad_times))
            return self._line(file, arrival_seconds, _with(record, self.profile.time_path, bad_time))
        paths = {
            "missing_user": self.profile.user_path,
            "missing_item": self.profile.item_path,
            "missing_time": self.profile.time_path,
        }
        shape = self.rng.integers(3)
        if shape == 0 and self.kinds[file] == "jsonl":
            return self._line(file, arrival_seconds, _without(record, paths[trouble]))
        return self._line(file, arrival_seconds, _with(record, paths[trouble], None if shape == 1 else ""))

    def _broken_json(self, record: Record) -> str:
        text = _json_line(record)
        # Time and user are kept, so that two truncated lines are never equal; the closing brace never is.
        end = self.rng.integers(text.index(f'"{self.profile.item_path[0]}"'), len(text) - 1)
        return text[:end] + "\n"

    def _broken_csv(self, record: Record) -> str:
        whole = len(self.profile.header)
        num_fields = int(self.rng.choice([*range(2, whole), whole + 1]))
        return self._csv_line([*record.values(), "surplus"][:num_fields])

    def _csv_line(self, values: Any) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=self.profile.delimiter, lineterminator="\n").writerow(values)
        return buffer.getvalue()


def _marks(events: Events) -> list[Mark]:
    columns = (
        events.time_N.tolist(),
        events.user_N.tolist(),
        events.item_N.tolist(),
        events.event_type_N.tolist(),
        [None if value != value else value for value in events.value_N.tolist()],
        events.session_N.tolist(),
    )
    return [Mark(*row) for row in zip(*columns, strict=True)]


def _bot_marks(process: Process, events: Events, num_marks: int) -> list[Mark]:
    """The bot takes item after item, spread evenly over all days, so that no two of its lines are equal; each day is a
    session."""
    config = process.config
    seconds = config.num_days * SECONDS_PER_DAY
    first_session = int(events.session_N[-1]) + 1 if len(events) else 0
    marks = []
    for at in range(num_marks):
        since_start = at * seconds // num_marks
        session = first_session + since_start // SECONDS_PER_DAY
        time, item = process.start_seconds + since_start, at % config.num_items
        marks.append(Mark(time, config.num_users, item, 0, None, session, is_machine=True))
    return marks


def _with(record: Record, path: tuple[str, ...], value: str | None) -> Record:
    """The record with another value at a path."""
    head, *rest = path
    return {**record, head: _with(record[head], tuple(rest), value) if rest else value}


def _without(record: Record, path: tuple[str, ...]) -> Record:
    """The record without what stands at a path."""
    head, *rest = path
    if rest:
        return {**record, head: _without(record[head], tuple(rest))}
    return {name: value for name, value in record.items() if name != head}


def _json_line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _earlier_output(folder: Path) -> list[Path]:
    """The files of an earlier call, the account last; ValueError where the folder holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; give a folder for the logs")
    present = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    try:
        ours = set(json.loads((folder / ACCOUNT_NAME).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    ours |= {ACCOUNT_NAME, _ACCOUNT_BESIDE}
    for path in present:
        if path.relative_to(folder).as_posix() not in ours:
            raise ValueError(f"{path}: is no simulated log of ours, and would be lost; give an empty or new folder")
    return sorted(present, key=lambda path: path.name == ACCOUNT_NAME)


def _write_account(folder: Path, account: LogsWritten, config: SimulationConfig, complete: bool) -> None:
    content = {name: value for name, value in asdict(account).items() if name != "folder"}
    content |= {"complete": complete, "profile": config.profile.name, "config": asdict(config)}
    beside = folder / _ACCOUNT_BESIDE
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, folder / ACCOUNT_NAME)
