"""The reader and processes: imports in any order, the room lifted out, worker processes that die, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llm_spark.reader
from llm_spark.reader import RaggedReader, ReadError
from tests.reader.tables import ragged_rows, write_files

ROOM = Path(llm_spark.reader.__file__).parent


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_files(tmp_path_factory.mktemp("table"), ragged_rows(400), 2, 10)


def run_python(code: str, *arguments: str, path: str = ".") -> str:
    preamble = f"import sys; sys.path.insert(0, {path!r})\n"
    command = [sys.executable, "-c", preamble + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import llm_spark.reader.compat; import pyarrow.parquet",
        "import pyarrow.parquet, torch; import llm_spark.reader.compat",
        "import numpy, pyarrow; import llm_spark.reader.compat; import petastorm",
    ],
)
def test_after_the_import_no_stand_in_is_left_whichever_comes_first(imports: str) -> None:
    code = (
        imports
        + """
import pyarrow, warnings
warnings.simplefilter("ignore")
for name in ("filesystem", "hdfs"):
    assert f"pyarrow.{name}" not in sys.modules and not hasattr(pyarrow, name)
    try:
        __import__(f"pyarrow.{name}")
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"pyarrow.{name} can be imported")
assert "stand-in" not in str(getattr(sys.modules.get("distutils"), "__doc__", ""))
import petastorm.workers_pool.thread_pool
print("ok")
"""
    )
    assert run_python(code) == "ok"


def test_what_stands_in_the_places_already_is_left_alone() -> None:
    code = """
import types
mine = sys.modules["pyarrow.hdfs"] = types.ModuleType("pyarrow.hdfs")
mine.HadoopFileSystem = object
import llm_spark.reader.compat
print(sys.modules["pyarrow.hdfs"] is mine)
"""
    assert run_python(code) == "True"


def test_petastorm_starts_its_own_processes_as_before() -> None:
    code = """
import llm_spark.reader.compat as compat
from petastorm.workers_pool import exec_in_new_process, process_pool
pool = compat.start_pool("process", 1, compat.WorkerBase, None, None, lambda: None, 300.0)
compat.stop_pool(pool)
print(process_pool.exec_in_new_process is exec_in_new_process.exec_in_new_process)
"""
    assert run_python(code) == "True"


def test_worker_processes_do_without_torch() -> None:
    assert run_python("import llm_spark.reader.worker; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_the_room_works_when_it_is_copied_out_under_another_name(tmp_path: Path, pool: str) -> None:
    shutil.copytree(ROOM, tmp_path / "lifted", ignore=shutil.ignore_patterns("__pycache__"))
    files = write_files(tmp_path, ragged_rows(50), 2, 10)
    code = """
from lifted import RaggedReader
pool, *files = sys.argv[1:]
batches = RaggedReader(files, ["id"], batch_rows=8, pool=pool).epoch(0)
print(sorted(i for batch in batches for i in batch["id"].tolist()) == list(range(50)), "llm_spark" in sys.modules)
"""
    assert run_python(code, pool, *files, path=str(tmp_path)) == "True False"


def test_a_process_pool_dropped_in_mid_epoch_leaves_no_process_and_no_file(table: list[str]) -> None:
    epoch = RaggedReader(table, ["id"], batch_rows=9, pool="process").epoch(0)
    workers = epoch._delivery._pool._workers
    next(epoch)
    del epoch
    assert all(worker.returncode is not None for worker in workers)
    assert not any(Path(worker.runnable).exists() for worker in workers)


def test_a_killed_worker_process_is_an_error_and_not_an_endless_wait(table: list[str]) -> None:
    epoch = RaggedReader(table, ["id"], batch_rows=9, pool="process", buffer_rows=20).epoch(0)
    next(epoch)
    for worker in epoch._delivery._pool._workers:
        worker.kill()
        worker.wait()
    with pytest.raises(ReadError, match=r"worker process \d ended with exit code -9"):
        list(epoch)


def test_a_worker_process_that_dies_in_starting_is_an_error_at_once(
    table: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_spark.reader.compat, "_CHILD", "raise SystemExit(7)")
    reader = RaggedReader(table, ["id"], batch_rows=9, pool="process")
    with pytest.raises(ReadError, match=r"worker process \d ended with exit code 7 in starting"):
        reader.epoch(0)


def test_worker_processes_that_do_not_start_in_time_are_an_error(
    table: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_spark.reader.compat, "_CHILD", "import sys; sys.stdin.read()")
    reader = RaggedReader(table, ["id"], batch_rows=9, pool="process", stall_seconds=0.3)
    read_end, write_end = os.pipe()
    saved = os.dup(0)
    os.dup2(read_end, 0)
    try:
        with pytest.raises(ReadError, match="worker processes take too long in starting"):
            reader.epoch(0)
    finally:
        os.dup2(saved, 0)
        for descriptor in (read_end, write_end, saved):
            os.close(descriptor)


KILLED = """
import json, sys
from llm_spark.reader import RaggedReader
log, *files = sys.argv[1:]
epoch = RaggedReader(files, ["id"], batch_rows=9, buffer_rows=50, num_workers=3).epoch(1)
with open(log, "w", buffering=1) as lines:
    for step, batch in enumerate(epoch, start=1):
        lines.write(json.dumps([batch["id"].tolist(), epoch.state()]) + chr(10))
        if step == 20:
            print("twenty", flush=True)
            sys.stdin.read()   # in mid-epoch, with its workers running
"""


@pytest.mark.parametrize("settings", [{"num_workers": 1}, {"pool": "process"}, {"world_size": 2}], ids=str)
def test_after_a_kill_the_last_state_gives_exactly_what_was_not_delivered(
    table: list[str], tmp_path: Path, settings: dict
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "log"), *table]
    environment = {**os.environ, "PYTHONPATH": "."}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"twenty\n"
    process.kill()
    process.communicate()
    delivered = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    seen = [i for ids, _ in delivered for i in ids]
    for rank in range(settings.get("world_size", 1)):
        reader = RaggedReader(table, ["id"], batch_rows=9, buffer_rows=50, rank=rank, **settings)
        seen += [i for batch in reader.resume(delivered[-1][1]) for i in batch["id"].tolist()]
    assert len(delivered) == 20
    assert sorted(seen) == list(range(400))


INTERRUPTED = """
import sys, threading, fsspec
from llm_spark.reader import RaggedReader
from llm_spark.reader import files
what, *paths = sys.argv[1:]

def never_answers(*_, **__):
    print("reading", flush=True)
    threading.Event().wait()

if what == "footers":
    files.Files._footer = never_answers
reader = RaggedReader(paths[:1], ["id"], batch_rows=9, num_workers=1)
files.Files.read = never_answers
for batch in reader.epoch(0):
    pass
"""


@pytest.mark.parametrize("what", ["footers", "row groups"])
def test_ctrl_c_ends_a_reader_that_waits_for_storage(table: list[str], what: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, what, *table]
    environment = {**os.environ, "PYTHONPATH": "."}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"reading\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in stderr
    assert process.returncode in (-signal.SIGINT, 1)
