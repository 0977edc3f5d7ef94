"""The files as an independent reader sees them."""

import csv
import gzip
import io
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from llm_spark.simulation import LogsWritten, Process, SimulationConfig, write_logs

CONFIG = SimulationConfig(num_users=120, num_days=6, num_files_per_day=2, missing_user_rate=0.01, broken_rate=0.02)
FORMATS = ["jsonl", "csv", "both"]


@pytest.fixture(scope="module", params=FORMATS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "logs"
    return folder, write_logs(CONFIG, folder, request.param)


def lines_of(folder: Path) -> list[tuple[Path, str]]:
    """File and line, in order of day; CSV headers left out."""
    found = []
    for path in sorted((path for path in folder.rglob("events-*")), key=lambda path: path.name):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode().splitlines()
        found += [(path, line) for line in (lines[1:] if ".csv" in path.name else lines)]
    return found


def parse(path: Path, line: str) -> dict | None:
    if ".csv" in path.name:
        values = next(csv.reader(io.StringIO(line)))
        names = ["time", "user", "item", "type", "value", "agent"]
        return dict(zip(names, values, strict=True)) if len(values) == len(names) else None
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def trouble_of(record: dict | None) -> str | None:
    if record is None:
        return "broken"
    if "bot" in record["agent"]:
        return "bot"
    for name in ("user", "item", "time"):
        if not record.get(name):
            return f"missing_{name}"
    try:
        datetime.strptime(record["time"], "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return "bad_time"
    return None


def accepted(folder: Path) -> tuple[list[tuple[Path, dict]], Counter]:
    """Records that stay after dropping, in this order, equal lines and troubled ones; and the number dropped by
    trouble."""
    seen, kept, dropped = set(), [], Counter()
    for path, line in lines_of(folder):
        if line in seen:
            dropped["duplicates"] += 1
            continue
        seen.add(line)
        record = parse(path, line)
        trouble = trouble_of(record)
        if trouble:
            dropped[trouble] += 1
        else:
            kept.append((path, record))
    return kept, dropped


def test_the_account_is_what_an_independent_reader_counts(written):
    folder, account = written
    kept, dropped = accepted(folder)
    late = sum(record["time"][:10] < path.name[len("events-") :][:10] for path, record in kept)
    assert dict(dropped) | {"late": late} == account.num_planted
    assert min(account.num_planted.values()) > 0
    assert len(kept) == account.num_clean_events
    assert len(lines_of(folder)) == account.num_lines
    assert len({record["user"] for _, record in kept}) == account.num_users


def test_what_remains_without_the_troubles_is_exactly_the_clean_events(written):
    folder, _ = written
    process = Process.draw(CONFIG)
    events = process.simulate()
    names = np.array(CONFIG.profile.event_types)
    clean = zip(
        (f"user-{user:06d}" for user in events.user_N),
        (f"item-{item:05d}" for item in events.item_N),
        events.time_N.tolist(),
        names[events.event_type_N].tolist(),
        (None if np.isnan(value) else value for value in events.value_N.tolist()),
        strict=True,
    )
    read = [
        (
            record["user"],
            record["item"],
            int(datetime.strptime(record["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()),
            record["type"],
            None if record["value"] in (None, "") else float(record["value"]),
        )
        for _, record in accepted(folder)[0]
    ]
    assert Counter(read) == Counter(clean)


def test_late_events_stand_in_a_file_of_the_next_two_days_and_none_stands_before_its_day(written):
    folder, _ = written
    days_late = Counter()
    for path, record in accepted(folder)[0]:
        file_day = datetime.fromisoformat(path.name[len("events-") :][:10])
        days_late[(file_day - datetime.fromisoformat(record["time"][:10])).days] += 1
    assert set(days_late) == {0, 1, 2}


def test_some_copies_stand_in_the_file_of_their_original_and_some_in_a_later_one(written):
    folder, _ = written
    files_of = {}
    for path, line in lines_of(folder):
        files_of.setdefault(line, []).append(path)
    pairs = [files for files in files_of.values() if len(files) > 1]
    num_files = Counter(len(set(pair)) for pair in pairs)
    assert num_files[1] > num_files[2] > 0


def test_each_day_has_its_files_plain_and_gzipped(written):
    folder, account = written
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("events-*")} == set(account.files)
    days = [f"events-2025-01-{day:02d}" for day in range(6, 12)]
    assert Counter(Path(file).name[:17] for file in account.files) == dict.fromkeys(days, 2)
    assert sum(file.endswith(".gz") for file in account.files) == 6
    assert account.num_header_lines == sum(".csv" in file for file in account.files)


def test_the_files_said_to_be_unsorted_are(tmp_path):
    none_out_of_place = {"late_rate": 0.0, "duplicate_rate": 0.0, "bad_time_rate": 0.0, "missing_time_rate": 0.0}
    account = write_logs(SimulationConfig(num_users=120, num_days=8, **none_out_of_place), tmp_path)
    times_of = {}
    for path, line in lines_of(tmp_path):
        if record := parse(path, line):
            times_of.setdefault(path, []).append(record["time"])
    assert sum(times != sorted(times) for times in times_of.values()) == account.num_unsorted_files == 2


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(tmp_path):
    def content(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    small = {"num_users": 30, "num_days": 3}
    for folder, seed in [("one", 5), ("two", 5), ("other", 6)]:
        write_logs(SimulationConfig(seed=seed, **small), tmp_path / folder, "both")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one") != content(tmp_path / "other")


def test_gzipped_files_carry_no_time_of_writing(tmp_path):
    account = write_logs(SimulationConfig(num_users=5, num_days=2, gzip_file_rate=1.0), tmp_path)
    modified_at = [(tmp_path / file).read_bytes()[4:8] for file in account.files]  # MTIME of RFC 1952
    assert modified_at == [bytes(4), bytes(4)]


def test_no_two_corrupted_lines_are_equal_even_where_many_are_wanted(tmp_path):
    few_items = {"num_items": 4, "num_tastes": 2, "num_intents": 2, "items_per_intent": 4}
    account = write_logs(SimulationConfig(num_users=40, num_days=4, bad_time_rate=1.0, **few_items), tmp_path, "csv")
    bad = [line for path, line in lines_of(tmp_path) if trouble_of(parse(path, line)) == "bad_time"]
    assert len(set(bad)) == len(bad) == account.num_planted["bad_time"]
    assert len(bad) < account.num_clean_events  # not as many different ones are to be had


def test_without_troubles_the_lines_are_the_clean_events(tmp_path):
    rates = {name: 0.0 for name in SimulationConfig.__dataclass_fields__ if name.endswith("_rate")}
    account = write_logs(SimulationConfig(num_users=20, num_days=2, **rates), tmp_path, "csv")
    assert account.num_lines == account.num_clean_events == len(lines_of(tmp_path))
    assert set(account.num_planted.values()) == {0}
    assert not any(file.endswith(".gz") for file in account.files)


def test_on_a_single_day_no_event_can_be_late(tmp_path):
    account = write_logs(SimulationConfig(num_users=50, num_days=1, late_rate=0.5), tmp_path)
    assert account.num_planted["late"] == 0


def test_the_account_beside_the_logs_holds_the_figures_and_the_config(written):
    folder, account = written
    beside = json.loads((folder / "_simulation.json").read_text())
    assert beside["complete"] is True
    assert SimulationConfig(**(beside["config"] | {"profile": CONFIG.profile})) == CONFIG
    figures = {name: beside[name] for name in LogsWritten.__dataclass_fields__ if name != "folder"}
    assert LogsWritten(folder=str(folder), **figures) == account


def test_earlier_output_is_replaced_without_rest(tmp_path):
    write_logs(SimulationConfig(num_users=20, num_days=5), tmp_path, "both")
    account = write_logs(SimulationConfig(num_users=20, num_days=2), tmp_path, "jsonl")
    assert {path.name for path in tmp_path.rglob("*")} == {*account.files, "_simulation.json"}


def test_output_whose_writing_was_cut_short_is_replaced(tmp_path, monkeypatch):
    config = SimulationConfig(num_users=20, num_days=4, gzip_file_rate=1.0)
    num_zipped = 0

    def killed_at_the_third_file(data, compresslevel, mtime):
        nonlocal num_zipped
        num_zipped += 1
        if num_zipped == 3:
            raise KeyboardInterrupt
        return b"cut short"

    with monkeypatch.context() as patch:
        patch.setattr(gzip, "compress", killed_at_the_third_file)
        with pytest.raises(KeyboardInterrupt):
            write_logs(config, tmp_path)
    assert json.loads((tmp_path / "_simulation.json").read_text())["complete"] is False
    account = write_logs(config, tmp_path)
    assert len(lines_of(tmp_path)) == account.num_lines


def test_a_folder_that_holds_other_files_is_refused_and_left_alone(tmp_path):
    write_logs(SimulationConfig(num_users=20, num_days=2), tmp_path)
    (tmp_path / "diary.txt").write_text("dear diary")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"^\S*diary\.txt: .*empty or new folder$"):
        write_logs(SimulationConfig(num_users=20, num_days=1), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_link_to_another_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no simulated log of ours"):
        write_logs(SimulationConfig(num_users=5, num_days=1), tmp_path / "logs")


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        write_logs(SimulationConfig(num_users=20, num_days=1), tmp_path / "logs")


def test_an_unknown_format_is_refused_naming_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"^fmt='xml': choose among jsonl, csv, both$"):
        write_logs(SimulationConfig(), tmp_path, "xml")
