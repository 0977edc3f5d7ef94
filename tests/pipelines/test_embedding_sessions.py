"""Item vectors for training to begin at, from the sequences table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
from pyspark.sql import SparkSession

from llm_spark.config import ModelConfig
from llm_spark.pipelines.initial_embedding import initial_embedding

COLUMNS = "sequence_id string, split string, tokens array<int>, session_starts array<int>, first_target int"


def test_vectors_are_learnt_from_the_sessions_of_the_training_split_alone(spark: SparkSession, tmp_path: Path) -> None:
    rows = [
        ("a", "train", [2, 3, 2, 4], [0], 1),
        ("b", "validation", [2, 5, 6], [0], 1),
        ("c", "test", [2, 7, 8], [0], 1),
    ]
    sequences = spark.createDataFrame(rows, COLUMNS)
    warehouse = SimpleNamespace(root=str(tmp_path), read=lambda table, version: sequences)
    config = ModelConfig(initial_embedding="word2vec", embedding_size=2)
    with initial_embedding(warehouse, 1, config, 1, "m1") as path:
        tokens = safetensors.torch.load_file(path)["tokens"].tolist()
    assert tokens == [2, 3, 4]
    assert not Path(path).exists()
