"""Does a Word2Vec start help? python -m tests.benchmarks.word2vec_start [--quick]

Training sessions of simulated users -> Spark ML's Word2Vec -> the item embedding that training begins with, as
`model.initial_embedding=word2vec` does it; the held-out loss and recall@20 after each epoch beside those of a random
start, mean and standard deviation over seeds. `items a 1,000 events` says how much there is to learn from: the fewer
events an item, the more a start could help.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from llm_spark import spark as spark_room
from llm_spark.config import ModelConfig, SparkConfig, TrainConfig
from llm_spark.model.history import HistoryBatch
from llm_spark.model.initial_embedding import begin_at_vectors, save_vectors
from llm_spark.model.network import NextEventModel
from llm_spark.pipelines.initial_embedding import item_vectors
from llm_spark.scoring.histories import history_batch
from llm_spark.simulation import SimulationConfig
from llm_spark.training.batches import measure
from llm_spark.training.distributed import Ranks
from llm_spark.training.loop import Trainer
from tests.benchmarks.simulated_histories import SimulatedHistories, simulated_histories

STARTS = {
    "random": ModelConfig(use_time_gaps=False),
    "word2vec": ModelConfig(use_time_gaps=False, initial_embedding="word2vec"),
    "word2vec 128, PCA": ModelConfig(use_time_gaps=False, initial_embedding="word2vec", word2vec_size=128),
}
BATCH_ROWS = 128


class Source:
    """The histories in memory, in a new order each epoch."""

    def __init__(self, histories: SimulatedHistories, seed: int) -> None:
        self._training, self._held_out = (
            table.combine_chunks().to_batches()[0] for table in (histories.training, histories.held_out)
        )
        self._seed = seed

    def num_steps(self, epoch: int) -> int:
        return -(-self._training.num_rows // BATCH_ROWS)

    def training(self, epoch: int) -> Iterator[HistoryBatch]:
        return self._batches(
            self._training, np.random.default_rng([self._seed, epoch]).permutation(self._training.num_rows)
        )

    def validation(self) -> Iterator[HistoryBatch]:
        return self._batches(self._held_out, np.arange(self._held_out.num_rows))

    def _batches(self, rows: pa.RecordBatch, order: np.ndarray) -> Iterator[HistoryBatch]:
        for first in range(0, len(order), BATCH_ROWS):
            yield history_batch(rows.take(pa.array(order[first : first + BATCH_ROWS])))


def validated(
    histories: SimulatedHistories, config: ModelConfig, vectors: str | None, seed: int, num_epochs: int
) -> list[tuple[float, float]]:
    """Held-out loss and recall@20 after each epoch."""
    ranks, source = Ranks(0, 1, torch.device("cpu")), Source(histories, seed)
    found = measure(source.training(0), histories.num_tokens, ranks, config)
    torch.manual_seed(seed)
    sizes = histories.num_tokens, histories.num_event_types
    model = NextEventModel(config, *sizes, found.value_mean, found.value_std)
    if vectors is not None:
        begin_at_vectors(model, vectors)
    model.begin_at_popularity(found.target_counts_V)
    settings = TrainConfig(num_epochs=num_epochs, device="cpu", seed=seed)
    result = Trainer(model, settings, source, ranks, found.target_counts_V).fit()
    by_name = {
        name: [m.value for m in result.metrics if m.name == name]
        for name in ("validation_loss", "validation_recall_at_20")
    }
    return list(zip(*by_name.values(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer users, epochs and seeds; for development")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_users, num_epochs, num_seeds = (600, 1, 1) if arguments.quick else (3_000, 2, 3)
    histories = simulated_histories(SimulationConfig(num_users=num_users))
    num_events = pc.sum(pc.list_value_length(histories.training["tokens"])).as_py()
    print(f"{num_events:,} training events, {1_000 * histories.num_tokens / num_events:.0f} items a 1,000 events")
    seeds = range(1, num_seeds + 1)
    with tempfile.TemporaryDirectory() as folder:
        table = str(Path(folder) / "training.parquet")
        pq.write_table(histories.training, table)
        spark = spark_room.session(SparkConfig(master="local[1]", shuffle_partitions=2), "word2vec_start")
        files: dict[tuple[str, int], str | None] = {}
        for name, config in STARTS.items():
            for seed in seeds:
                files[name, seed] = None
                if config.initial_embedding == "word2vec":
                    tokens_I, vectors_IE = item_vectors(spark.read.parquet(table), config, seed)
                    path = str(Path(folder) / f"{name}-{seed}.safetensors")
                    save_vectors(path, torch.from_numpy(tokens_I), torch.from_numpy(vectors_IE))
                    files[name, seed] = path
        spark.stop()
        curves = {
            name: [validated(histories, config, files[name, seed], seed, num_epochs) for seed in seeds]
            for name, config in STARTS.items()
        }
    print(f"{'start':<20}{'epoch':>6}{'held-out loss':>20}{'recall@20':>18}")
    summary: dict[str, list[float]] = {name: [] for name in STARTS}
    for epoch in range(num_epochs):
        for name, of_seeds in curves.items():
            columns = list(zip(*[curve[epoch] for curve in of_seeds], strict=True))
            cells = [f"{statistics.mean(c):.3f} ± {statistics.stdev(c) if num_seeds > 1 else 0:.3f}" for c in columns]
            print(f"{name:<20}{epoch + 1:>6}{cells[0]:>20}{cells[1]:>18}")
            summary[name].append(round(statistics.mean(columns[0]), 4))
    print(json.dumps({"benchmark": "word2vec_start", "held_out_loss": summary, "ratios": {}, "bars": {}}))


if __name__ == "__main__":
    main()
