"""RaggedReader: the public face of the room."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from typing import Any, Literal

from .batch import Batch, batches_of, empty_batch
from .columns import Column, Fill, resolve_columns
from .delivery import Delivery
from .errors import ColumnError, ReaderError, SnapshotError, StateError
from .files import Files
from .plan import Batching, EpochPlan, Phase
from .schedule import Schedule
from .snapshot import Snapshot
from .storage import NUM_ATTEMPTS, STALL_SECONDS
from .worker import WorkerArgs

_STATE_FORMAT = 3


class RaggedReader:
    """Reads exactly the files of one snapshot into ragged torch batches: every row once an epoch, over all ranks.

        from llm_spark.reader import RaggedReader, Snapshot

        snapshot = Snapshot.of_delta("s3://bucket/tables/sequences", version=7)  # or any list of Parquet files
        reader = RaggedReader(snapshot, columns=["tokens", "label"], batch_rows=64, rank=rank, world_size=world_size)
        for epoch in range(3):
            for batch in (batches := reader.epoch(epoch)):   # reader.num_steps(epoch) steps, the same on every rank
                tokens = batch["tokens"]                     # .values [N], .offsets int64 [B + 1]
                loss = model(tokens.values, tokens.offsets, batch["label"])
                ...
                save(model, json.dumps(batches.state()))     # later: for batch in reader.resume(json.loads(saved))

    Lists of numbers come as `Ragged`, numbers and booleans as tensors [B], text as numpy object arrays [B], dates and
    times as integers in their stored unit. Nulls: a null list is empty, a null float is NaN (alone or in a list), null
    text is None, a null integer needs a fill value. A column that older files lack is null there. Numbers are widened
    where files differ.

    Order is drawn from (seed, epoch) alone, for a given world size; workers and timing have no part in it. Shuffling
    has two levels: row groups over the whole epoch, rows inside a buffer of `buffer_rows`. With `length_column` rows of
    like length share a batch (bucketing inside the buffer); the lengths are read once, four bytes a row.

    Memory: num_workers row groups plus twice `buffer_rows` rows, of the columns read: one buffer is delivered while the
    next one fills. While row groups are decoded, and a buffer is put in order, these are held twice.

    Args:
        files: a Snapshot, or a list of paths or fsspec URLs of Parquet files.
        columns: names of the columns to deliver.
        batch_rows: rows of a batch; only the last of a rank may have fewer.
        batch_tokens: instead: rows x longest row of `length_column` stays within this. A longer row is a batch of its
        own.
        length_column: the list column that batches are bucketed by, and that a token budget counts.
        rank, world_size: this process and how many share the rows.
        seed: of the order, 0 or more (0 is a seed like any other).
        shuffle: False keeps the order of the files and of the rows in them.
        buffer_rows: rows that are mixed with each other.
        num_workers: threads or processes that read. On two cores two are the fastest.
        pool: "thread" (Arrow releases the GIL; right nearly always) or "process" (their sockets on the loopback
        interface accept
            pickles from any user of the machine: not for machines shared with people you do not trust).
        fill_values: by column, what stands for null.
        storage_options: passed on to fsspec.
        num_attempts: how often a failing read is tried, with a growing pause, before it counts as failed; the default
            outlasts a fault of nine seconds.
        stall_seconds: fail when no footer or row group has come for this long.

    Raises:
        SnapshotError: no rows; a file is missing, corrupt, or has rows deleted by a deletion vector.
        ColumnError: a column that is not there, or that has no tensor form.
        ReaderError: arguments that contradict each other.
    """

    def __init__(
        self,
        files: Snapshot | Sequence[str | PathLike[str]],
        columns: Sequence[str],
        *,
        batch_rows: int | None = None,
        batch_tokens: int | None = None,
        length_column: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        buffer_rows: int = 65_536,
        num_workers: int = 2,
        pool: Literal["thread", "process"] = "thread",
        fill_values: Mapping[str, Fill] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        num_attempts: int = NUM_ATTEMPTS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        if (batch_rows is None) == (batch_tokens is None):
            raise ReaderError(f"give one of batch_rows and batch_tokens, not {batch_rows} and {batch_tokens}")
        if batch_tokens is not None and length_column is None:
            raise ReaderError("batch_tokens needs length_column, the list column whose lengths it counts")
        sizes = {"batch_rows": batch_rows, "batch_tokens": batch_tokens, "buffer_rows": buffer_rows}
        for name, size in {**sizes, "num_workers": num_workers, "num_attempts": num_attempts}.items():
            if size is not None and size < 1:
                raise ReaderError(f"{name} is {size}: give 1 or more")
        if not 0 <= rank < world_size:
            raise ReaderError(f"rank {rank} is not one of 0..{world_size - 1}: ranks count from 0 to world_size - 1")
        if pool not in ("thread", "process"):
            raise ReaderError(f"pool is {pool!r}: give 'thread' or 'process'")
        if isinstance(columns, str):
            raise ReaderError(f"columns is {columns!r}: give a list of names")
        _require_seed("seed", seed)
        snapshot = files if isinstance(files, Snapshot) else _snapshot_of(files)
        _refuse_deletion_vectors(snapshot)

        self.rank, self.world_size, self.seed = rank, world_size, seed
        self._pool, self._num_workers, self._stall_seconds = pool, num_workers, stall_seconds
        self._batching = Batching(batch_rows, batch_tokens, buffer_rows, shuffle, bucket=length_column is not None)
        self._length_column = length_column
        self._files = Files(snapshot.files, str(snapshot), num_attempts, stall_seconds, dict(storage_options or {}))
        if pool == "process":
            self._files.require_reachable_from_other_processes()
        footers = self._files.footers()
        self._groups = [(f, g, n) for f, footer in enumerate(footers) for g, n in enumerate(footer.group_rows)]
        self._group_rows = [num_rows for _, _, num_rows in self._groups]
        self.num_rows = sum(self._group_rows)
        if not self.num_rows:
            raise SnapshotError(
                f"{snapshot} has no rows in {len(footers)} files: check the version, or the stage that writes it"
            )
        if partitions := sorted(set(columns) & set(snapshot.partition_columns)):
            raise ColumnError(
                f"{partitions} are partition columns of {snapshot.table}: their values stand in the log only; "
                "choose by them (Snapshot.of_delta(partitions=...)) or keep a copy as a data column"
            )
        schemas = dict(zip(snapshot.files, (footer.schema for footer in footers), strict=True))
        self._columns = tuple(resolve_columns(columns, schemas, fill_values or {}))
        self._lengths = None
        if length_column is not None:
            if resolve_columns([length_column], schemas, {})[0].kind != "ragged":
                raise ColumnError(
                    f"length_column '{length_column}' is no list column: give one whose rows have lengths"
                )
            self._lengths = self._files.row_lengths(length_column, footers, num_workers)
        self._last_plan: tuple[tuple[int, tuple[Phase, ...]], EpochPlan] | None = None

    def num_steps(self, epoch: int) -> int:
        """Steps of this epoch, the same on every rank."""
        return self._plan(epoch, ()).num_steps

    def padding_share(self, epoch: int) -> float:
        """The share of cells that would be padding if each of this rank's batches were padded to its longest row.

        Raises:
            ReaderError: without a length_column the lengths are not known; ask each batch's `Ragged.padding_share`.
        """
        if self._lengths is None:
            raise ReaderError("padding_share needs length_column; without one ask Ragged.padding_share of each batch")
        return self._plan(epoch, ()).rank(self.rank).padding_share()

    def epoch(self, epoch: int) -> Epoch:
        """The batches of one epoch on this rank, from its beginning."""
        return Epoch(self, epoch, ())

    def resume(self, state: Mapping[str, Any]) -> Epoch:
        """The batches of the epoch that remain after `state`, which `Epoch.state` returned on any rank.

        At the same world size they are exactly the batches that would have followed. At another, the rows that remain
        are shared anew among the ranks, each delivered once.

        Raises:
            StateError: the state was written with another snapshot, seed or batching.
        """
        expected = self._state(0, ())
        for key in ("format", "snapshot", "seed", "batching"):
            if state.get(key) != expected[key]:
                raise StateError(
                    f"the state was written with {key} {state.get(key)!r} and this reader has {expected[key]!r}: "
                    "resume with what it was written with, or begin the epoch anew"
                )
        return Epoch(self, int(state["epoch"]), tuple(Phase(*phase) for phase in state["phases"]))

    def _plan(self, epoch: int, phases: tuple[Phase, ...]) -> EpochPlan:
        _require_seed("epoch", epoch)
        if self._last_plan is None or self._last_plan[0] != (epoch, phases):
            plan = EpochPlan(self._group_rows, self._batching, self.seed, epoch, self.world_size, self._lengths, phases)
            self._last_plan = (epoch, phases), plan
        return self._last_plan[1]

    def _state(self, epoch: int, phases: Sequence[Phase]) -> dict[str, Any]:
        batching = self._batching
        layout = repr((self._files.paths, self._groups)).encode()
        return {
            "format": _STATE_FORMAT,
            "snapshot": hashlib.sha256(layout).hexdigest()[:16],
            "seed": self.seed,
            "batching": {
                "batch_rows": batching.batch_rows,
                "batch_tokens": batching.batch_tokens,
                "buffer_rows": batching.buffer_rows,
                "shuffle": batching.shuffle,
                "length_column": self._length_column,
            },
            "epoch": epoch,
            "phases": [[phase.world_size, phase.num_steps] for phase in phases],
        }


class Epoch(Iterator[Batch]):
    """The batches of one epoch, or the rest of it. Closing, exhausting, leaving or dropping it ends its workers.

    Attributes:
        num_steps: steps from the beginning of the epoch (or of the last change of world size) to its end.
    """

    def __init__(self, reader: RaggedReader, epoch: int, phases: tuple[Phase, ...]) -> None:
        first_step = 0
        if phases and phases[-1].world_size == reader.world_size:
            first_step, phases = phases[-1].num_steps, phases[:-1]
        self._reader, self._epoch, self._phases, self._step = reader, epoch, phases, first_step
        plan = reader._plan(epoch, phases)
        rank_plan = plan.rank(reader.rank)
        self.num_steps = plan.num_steps
        self._delivery = Delivery(
            Schedule(rank_plan, first_step),
            reader._groups.__getitem__,
            WorkerArgs(reader._files, reader._columns, threading.Event() if reader._pool == "thread" else None),
            reader._pool,
            reader._num_workers,
            2 * reader._batching.buffer_rows + reader._num_workers * max(reader._group_rows),
            reader._stall_seconds,
        )
        # Not a method: a generator that held this Epoch would keep a dropped one, and its workers, alive.
        num_tail_steps = self.num_steps - max(first_step, rank_plan.num_batches)
        self._batches = _batches(self._delivery, reader._columns, num_tail_steps)

    def __iter__(self) -> Epoch:
        return self

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()
            raise
        self._step += 1
        return batch

    def state(self) -> dict[str, Any]:
        """What `RaggedReader.resume` needs to go on after the last batch: a little JSON, the same on every rank.

        It counts the steps taken, so save it with the model after the step that used the batch.
        """
        return self._reader._state(self._epoch, (*self._phases, Phase(self._reader.world_size, self._step)))

    def close(self) -> None:
        """End the workers; a closed epoch delivers nothing more. Waits a second at most."""
        self._batches = iter(())
        self._delivery.close()

    def __enter__(self) -> Epoch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _batches(delivery: Delivery, columns: Sequence[Column], num_tail_steps: int) -> Iterator[Batch]:
    with ThreadPoolExecutor(1, "llm_spark reader, ahead") as ahead:
        for slab, parts in delivery.slabs():
            yield from batches_of(parts, slab, columns, ahead)
    for _ in range(num_tail_steps):
        yield empty_batch(columns)


def _snapshot_of(files: Sequence[str | PathLike[str]]) -> Snapshot:
    if isinstance(files, str | PathLike):
        raise ReaderError(
            f"files is {fspath(files)!r}: give a list of files, or Snapshot.of_delta(...) for a Delta table"
        )
    return Snapshot(tuple(fspath(file) for file in files))


def _refuse_deletion_vectors(snapshot: Snapshot) -> None:
    marked = snapshot.files_with_deletion_vectors
    if marked:
        raise SnapshotError(
            f"{snapshot} has deletion vectors on {len(marked)} files, the first {marked[0]}: deleted rows would be read; "
            "run REORG TABLE ... APPLY (PURGE) and set delta.enableDeletionVectors=false"
        )


def _require_seed(name: str, value: int) -> None:
    if value < 0:
        raise ReaderError(f"{name} is {value}: give 0 or more")
