"""The reader against its rivals on the same rows: python -m tests.benchmarks.reader [--quick] [--streaming-python PATH]

400k ragged sequences of mean length 20 in 20k-row groups, columns id and tokens, in batches of 256. In turns within one
run:

    ours                 RaggedReader as it comes: shuffled, two worker threads
    raw_pyarrow          ParquetFile.read_row_group of the same columns, row group after row group, and nothing else
    batched_data_loader  petastorm.pytorch.BatchedDataLoader on this same stack, behind the stand-ins below; Petastorm
    cannot
                         stack ragged lists, so its TransformSpec pads them to the longest row of the table
    dataloader_rows      torch.utils.data.DataLoader over row dicts, collated into values and offsets
    mosaicml             mosaicml-streaming from a local MDS copy (written untimed), batched by a DataLoader; in a
    process of
                         its own, by this interpreter or by that of --streaming-python; skipped if neither has it

A first pass of each, untimed, must deliver every row once: the sums of ids and tokens are compared. A timed pass takes
what is delivered and counts rows, so that nobody pays for the other's way to add up. A ratio is the median over turns
of the rival's time over ours. `waiting_share` is the part of a small LSTM's training loop that passes in the reader.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from llm_spark.reader import RaggedReader
from llm_spark.reader.plan import Batching, EpochPlan

BARS = {"raw_pyarrow": 0.8, "batched_data_loader": 3.0, "mosaicml": 50.0}
WAITING_BAR = 0.05
BATCH_ROWS = 256
GROUP_ROWS = 20_000
COLUMNS = ["id", "tokens"]

Sums = tuple[int, int, int]
"""Rows, sum of ids, sum of tokens."""

Read = Callable[[], Iterator[tuple[Any, Any]]]
"""A pass over the table: (ids, tokens) of what is delivered at a time, each with `len` and `sum`."""


def write_table(folder: Path, num_rows: int) -> list[str]:
    """Files of 80k rows at most; row lengths are 1 + Poisson(19)."""
    random = np.random.default_rng(0)
    paths = []
    for first in range(0, num_rows, 4 * GROUP_ROWS):
        num = min(4 * GROUP_ROWS, num_rows - first)
        offsets = np.concatenate([[0], np.cumsum(1 + random.poisson(19, num))]).astype(np.int32)
        tokens = pa.array(random.integers(2, 20_000, offsets[-1], np.int32))
        lists = pa.ListArray.from_arrays(pa.array(offsets), tokens)
        paths.append(str(folder / f"part-{len(paths)}.parquet"))
        table = pa.table({"id": np.arange(first, first + num), "tokens": lists})
        pq.write_table(table, paths[-1], row_group_size=GROUP_ROWS)
    return paths


def ours(files: list[str]) -> Read:
    reader = RaggedReader(files, COLUMNS, batch_rows=BATCH_ROWS)

    def read() -> Iterator[tuple[Any, Any]]:
        for batch in reader.epoch(0):
            yield batch["id"], batch["tokens"].values

    return read


def raw_pyarrow(files: list[str]) -> Read:
    def read() -> Iterator[tuple[Any, Any]]:
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=COLUMNS)
                    yield table["id"].chunk(0).to_numpy(), table["tokens"].chunk(0).values.to_numpy()

    return read


class _LegacyPiece:
    """pyarrow.parquet.ParquetDatasetPiece as Petastorm uses it; pyarrow 15 removed it."""

    def __init__(
        self, path: str, open_file_func: Any, row_group: int | None = None, partition_keys: Any = None
    ) -> None:
        self.path, self._open, self.row_group, self.partition_keys = path, open_file_func, row_group, partition_keys

    def get_metadata(self) -> pq.FileMetaData:
        return pq.read_metadata(self.path)

    def read(self, columns: set[str], partitions: None) -> pa.Table:
        with self._open(self.path) as opened, pq.ParquetFile(opened) as parquet:
            return parquet.read_row_group(self.row_group, columns=sorted(columns))


class _LegacyDataset:
    """pyarrow.parquet.ParquetDataset with the attributes that Petastorm reads; pyarrow 15 removed them."""

    metadata = common_metadata = partitions = None

    def __init__(self, paths: list[str], filesystem: Any, **_: Any) -> None:
        self.paths, self.fs = paths, filesystem
        self.pieces = [_LegacyPiece(path, filesystem.open) for path in paths]


def batched_data_loader(files: list[str]) -> Read:
    import petastorm.arrow_reader_worker
    import petastorm.etl.dataset_metadata
    import petastorm.reader
    from fsspec.implementations.local import LocalFileSystem
    from petastorm.pytorch import BatchedDataLoader
    from petastorm.transform import TransformSpec

    legacy = SimpleNamespace(ParquetDataset=_LegacyDataset, ParquetDatasetPiece=_LegacyPiece)
    for module in (petastorm.reader, petastorm.arrow_reader_worker, petastorm.etl.dataset_metadata):
        module.pq = legacy
    longest = max(pc.max(pc.list_value_length(pq.read_table(file)["tokens"])).as_py() for file in files)

    def pad(rows: Any) -> Any:
        padded = np.zeros((len(rows), longest), dtype=np.int32)
        lengths = rows["tokens"].map(len).to_numpy()
        padded[np.arange(longest) < lengths[:, None]] = np.concatenate(rows["tokens"].to_numpy())
        rows["tokens"] = list(padded)
        return rows

    def read() -> Iterator[tuple[Any, Any]]:
        spec = TransformSpec(pad, edit_fields=[("tokens", np.int32, (longest,), False)])
        reader = petastorm.reader.make_batch_reader(
            [f"file://{file}" for file in files],
            schema_fields=COLUMNS,
            workers_count=3,
            seed=1,
            transform_spec=spec,
            filesystem=LocalFileSystem(),
        )
        with BatchedDataLoader(reader, batch_size=BATCH_ROWS, shuffling_queue_capacity=65_536) as loader:
            for batch in loader:
                yield batch["id"], batch["tokens"]

    return read


def dataloader_rows(files: list[str]) -> Read:
    def collate(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([0] + [len(row["tokens"]) for row in rows])
        values = torch.tensor([token for row in rows for token in row["tokens"]], dtype=torch.int32)
        return torch.tensor([row["id"] for row in rows]), values, lengths.cumsum(0)

    def read() -> Iterator[tuple[Any, Any]]:
        rows = [row for file in files for row in pq.read_table(file, columns=COLUMNS).to_pylist()]
        loader = torch.utils.data.DataLoader(rows, BATCH_ROWS, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
        for id_B, values_N, _ in loader:
            yield id_B, values_N

    return read


# Speaks lines with the parent: "ready" once the copy is written, then for each line in one pass: "count" gives the rows,
# "sum" rows and sums.
_STREAMING = """
import sys
import numpy as np, torch
from streaming import MDSWriter, StreamingDataset
arrays, copy, batch_rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = np.load(arrays)
ids, offsets, tokens = rows["ids"], rows["offsets"], rows["tokens"]
with MDSWriter(out=copy, columns={"id": "int", "tokens": "ndarray:int32"}) as writer:
    for i in range(len(ids)):
        writer.write({"id": int(ids[i]), "tokens": tokens[offsets[i] : offsets[i + 1]]})
def collate(rows):
    lengths = torch.tensor([0] + [len(row["tokens"]) for row in rows])
    values = torch.from_numpy(np.concatenate([row["tokens"] for row in rows]))
    return torch.tensor([row["id"] for row in rows]), values, lengths.cumsum(0)
dataset = StreamingDataset(local=copy, shuffle=True, batch_size=batch_rows)
print("ready", flush=True)
for line in sys.stdin:
    sums = [0, 0, 0]
    for id_B, values_N, _ in torch.utils.data.DataLoader(dataset, batch_rows, collate_fn=collate):
        sums[0] += len(id_B)
        if line.strip() == "sum":
            sums[1:] = sums[1] + int(id_B.sum()), sums[2] + int(values_N.sum())
    print(*sums, flush=True)
"""


class Streaming:
    """mosaicml-streaming in a process of its own; a turn is one line to it and one back."""

    def __init__(self, python: str, files: list[str], folder: Path) -> None:
        table = pa.concat_tables([pq.read_table(file) for file in files]).combine_chunks()
        tokens = table["tokens"].chunk(0)
        np.savez(folder / "rows.npz", ids=table["id"], offsets=tokens.offsets, tokens=tokens.values)
        arguments = [python, "-c", _STREAMING, str(folder / "rows.npz"), str(folder / "mds"), str(BATCH_ROWS)]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read_line("ready")

    def count(self) -> int:
        return self._pass("count")[0]

    def sums(self) -> Sums:
        return self._pass("sum")

    def _pass(self, kind: str) -> Sums:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind}\n")
        self._process.stdin.flush()
        num_rows, ids, tokens = map(int, self._read_line().split())
        return num_rows, ids, tokens

    def _read_line(self, expected: str | None = None) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == expected or (expected is None and len(line.split()) == 3):
                return line
        raise RuntimeError(f"mosaicml-streaming ended with exit code {self._process.wait()}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class InProcess:
    """A pass in this process, counted or added up."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def count(self) -> int:
        return sum(len(ids) for ids, _ in self._read())

    def sums(self) -> Sums:
        totals = [(len(ids), int(ids.sum()), int(tokens.sum())) for ids, tokens in self._read()]
        num_rows, ids, tokens = (sum(of_all) for of_all in zip(*totals, strict=True))
        return num_rows, ids, tokens


def seconds_of(contender: InProcess | Streaming, num_rows: int) -> float:
    start = time.perf_counter()
    found = contender.count()
    seconds = time.perf_counter() - start
    if found != num_rows:
        raise AssertionError(f"{contender} delivered {found} rows instead of {num_rows}")
    return seconds


def waiting_share(files: list[str], num_steps: int) -> float:
    """The part of an LSTM's training loop (64 -> 128, 512 classes, one CPU thread) that passes in the reader.

    The start of the epoch, paid each epoch, is waiting; the reader's own making, paid once, is before the clock starts.
    """
    torch.manual_seed(0)
    embedding, lstm = torch.nn.Embedding(20_000, 64), torch.nn.LSTM(64, 128, batch_first=True)
    head = torch.nn.Linear(128, 512)
    parameters = [*embedding.parameters(), *lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)

    def timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - start
            if batch is None:
                return
            yield batch, waited

    reader = RaggedReader(files, COLUMNS, batch_rows=BATCH_ROWS, length_column="tokens")
    start = time.perf_counter()
    epoch = reader.epoch(0)
    waited = elapsed = time.perf_counter() - start
    with epoch:
        for step, (batch, seconds) in enumerate(timed(epoch), start=1):
            waited += seconds
            tokens_BT = batch["tokens"].padded().long()
            hidden_BTH, _ = lstm(embedding(tokens_BT))
            loss = torch.nn.functional.cross_entropy(head(hidden_BTH[:, -1]), batch["id"] % 512)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            elapsed = time.perf_counter() - start
            if step == num_steps:
                break
    return waited / elapsed


def shuffle_quality(num_rows: int) -> dict[str, float]:
    """How near the two-level shuffle comes to a full one, for a buffer of 65,536 rows.

    `rank_correlation`: of a row's place in the table with its place in the epoch (0 for a full shuffle).
    `neighbours_together`: how many times more often than under a full shuffle two rows that are neighbours in the table
    share a batch. `groups_in_batch`: row groups of which a batch holds rows (under a full shuffle: nearly all).
    """
    group_rows = [GROUP_ROWS] * (num_rows // GROUP_ROWS)
    plan = EpochPlan(group_rows, Batching(BATCH_ROWS, None, 65_536, True, False), 0, 0, 1).rank(0)
    group_of = np.array([piece.group for piece in plan.pieces])
    place, batch_of = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.int64)
    num_groups, delivered, batch = [], 0, 0
    for number in range(plan.num_blocks):
        block = plan.block(number)
        groups = group_of[np.searchsorted(plan.starts, block.order, side="right") - 1]
        rows = groups * GROUP_ROWS + block.order % GROUP_ROWS
        place[rows] = delivered + np.arange(len(rows))
        batch_of[rows] = batch + np.repeat(np.arange(block.num_batches), np.diff(block.starts))
        num_groups += [len(np.unique(groups[a:b])) for a, b in zip(block.starts[:-1], block.starts[1:], strict=True)]
        delivered, batch = delivered + len(rows), batch + block.num_batches
    together = float((batch_of[1:] == batch_of[:-1]).mean())
    return {
        "rank_correlation": round(float(np.corrcoef(np.arange(num_rows), place)[0, 1]), 3),
        "neighbours_together": round(together / (BATCH_ROWS / num_rows), 2),
        "groups_in_batch": round(float(np.mean(num_groups)), 2),
        "groups": len(group_rows),
    }


def streaming_python(given: str | None) -> str | None:
    """The interpreter that has mosaicml-streaming: the given one, or this."""
    python = given or sys.executable
    found = subprocess.run([python, "-c", "import streaming"], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return python
    print(
        f"mosaicml skipped: {python} has no mosaicml-streaming; pip install mosaicml-streaming there, or name another by --streaming-python"
    )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, fewer turns; for development")
    parser.add_argument("--streaming-python", help="an interpreter that has mosaicml-streaming")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_rows, num_turns, num_slow_turns = (40_000, 3, 1) if arguments.quick else (400_000, 9, 2)
    with tempfile.TemporaryDirectory() as name:
        files = write_table(Path(name), num_rows)
        contenders: dict[str, InProcess | Streaming] = {
            "raw_pyarrow": InProcess(raw_pyarrow(files)),
            "batched_data_loader": InProcess(batched_data_loader(files)),
            "dataloader_rows": InProcess(dataloader_rows(files)),
        }
        streaming = None
        if python := streaming_python(arguments.streaming_python):
            streaming = contenders["mosaicml"] = Streaming(python, files, Path(name))
        own = InProcess(ours(files))
        expected = own.sums()
        for rival, contender in contenders.items():
            if (sums := contender.sums()) != expected:
                raise AssertionError(f"{rival} delivered {sums} (rows, sum of ids, sum of tokens), ours {expected}")
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        ratios: dict[str, list[float]] = {name: [] for name in contenders}
        own_seconds: list[float] = []
        for turn in range(num_turns):
            for rival, contender in contenders.items():
                if rival == "raw_pyarrow" or turn < num_slow_turns:
                    own_seconds.append(seconds_of(own, num_rows))
                    seconds[rival].append(seconds_of(contender, num_rows))
                    ratios[rival].append(seconds[rival][-1] / own_seconds[-1])
        if streaming is not None:
            streaming.close()
        waiting = waiting_share(files, 40 if arguments.quick else 300)

    print(f"{num_rows} rows, batches of {BATCH_ROWS}, {torch.get_num_threads()} torch thread, pyarrow {pa.__version__}")
    print(f"{'ours':20s} {num_rows / statistics.median(own_seconds):12,.0f} rows/s")
    medians = {name: round(statistics.median(of_name), 2) for name, of_name in ratios.items()}
    for name, ratio in medians.items():
        spread = f"{min(ratios[name]):.2f}..{max(ratios[name]):.2f} over {len(ratios[name])} turns"
        rate = num_rows / statistics.median(seconds[name])
        print(f"{name:20s} {rate:12,.0f} rows/s   ours is {ratio:8.2f} x as fast ({spread}); bar {BARS.get(name, '-')}")
    print(f"waiting for data     {waiting:12.1%} of the training loop; bar {WAITING_BAR:.0%}")
    quality = shuffle_quality(num_rows)
    print(f"shuffle              {quality}")
    bars = {name: bar for name, bar in BARS.items() if name in medians}
    shares = {"waiting_share": round(waiting, 4), "shuffle": quality}
    print(json.dumps({"benchmark": "reader", "ratios": medians, "bars": bars, **shares}))


if __name__ == "__main__":
    main()
