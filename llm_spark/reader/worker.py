"""The worker of Petastorm's pools: reads one row group, takes the rows it is asked for, publishes them as Arrow data.

Petastorm's own worker goes by way of pandas and `np.vstack`, which neither ragged columns nor speed survive; this one
follows the same `WorkerBase` protocol. In a thread pool the Arrow data is handed over as it is; from a process it goes
as one Arrow IPC stream.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .columns import Column, conform
from .compat import WorkerBase
from .errors import ReaderError, ReadError, SnapshotError
from .files import Files, FooterCache
from .plan import Rows, indices
from .storage import first_line


@dataclass(frozen=True)
class WorkerArgs:
    """What every worker is given at its start; `cancelled` only where threads share it."""

    files: Files
    columns: tuple[Column, ...]
    cancelled: threading.Event | None


@dataclass(frozen=True)
class Result:
    """Of one request: for each slab the rows taken, or the error that kept them."""

    position: int
    parts: list[pa.RecordBatch]
    error: ReaderError | None = None


class RowGroupWorker(WorkerBase):
    """Publishes exactly one `Result` for each request, whatever happens: a result that never comes would be a lost row
    group.
    """

    def __init__(self, worker_id: int, publish_func: Callable[[Result], None], args: WorkerArgs) -> None:
        super().__init__(worker_id, publish_func, args)
        self._footers = FooterCache()

    def process(self, position: int, file: int, group: int, num_rows: int, takes: list[Rows]) -> None:
        where = f"row group {group} of {self.args.files.paths[file]}"
        try:
            result = Result(position, self._read(file, group, num_rows, takes, where))
        except ReaderError as error:
            result = Result(position, [], error)
        except BaseException as error:  # also SystemExit: it would end the thread without a word
            result = Result(position, [], ReadError(f"{where}: {type(error).__name__}: {first_line(error)}"))
        self.publish_func(result)

    def _read(self, file: int, group: int, num_rows: int, takes: list[Rows], where: str) -> list[pa.RecordBatch]:
        names = [column.name for column in self.args.columns]
        table = self.args.files.read(file, group, names, self._footers, self.args.cancelled)
        if table.num_rows != num_rows:
            raise SnapshotError(
                f"{where} has {table.num_rows} rows where its footer had {num_rows}: "
                "the file changed under the reader; open it anew"
            )
        batch = conform(table, self.args.columns, where)
        return _taken(batch, takes)


def _taken(batch: pa.RecordBatch, takes: list[Rows]) -> list[pa.RecordBatch]:
    """The rows of each take. Slices share the batch's memory where they make up half of it; less would keep alive what
    nobody counts, and is copied.
    """
    shares = 2 * sum(len(rows) for rows in takes if isinstance(rows, range)) >= batch.num_rows
    return [
        batch.slice(rows.start, len(rows))
        if shares and isinstance(rows, range)
        else batch.take(pa.array(indices(rows)))
        for rows in takes
    ]


class ResultSerializer:
    """How a `Result` travels from a worker process: its pickled head, then one Arrow IPC stream."""

    def serialize(self, result: Result) -> bytes | pa.Buffer:
        sink = pa.BufferOutputStream()
        head = pickle.dumps((result.position, result.error))
        sink.write(len(head).to_bytes(8, "little") + head)
        if result.parts:
            with pa.ipc.new_stream(sink, result.parts[0].schema) as stream:
                for part in result.parts:
                    stream.write_batch(part)
        return sink.getvalue()

    def deserialize(self, serialized: Any) -> Result:
        buffer = pa.py_buffer(serialized)
        head_end = 8 + int.from_bytes(buffer[:8].to_pybytes(), "little")
        position, error = pickle.loads(buffer[8:head_end])
        if error is not None:
            return Result(position, [], error)
        with pa.ipc.open_stream(buffer[head_end:]) as stream:
            return Result(position, list(stream))
