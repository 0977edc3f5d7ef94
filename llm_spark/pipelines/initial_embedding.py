"""Word2Vec on the training sessions -> a file of item vectors that training begins with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from pyspark.ml.feature import Word2Vec
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from llm_spark.config import ModelConfig
from llm_spark.files import locate
from llm_spark.logs import log, progress
from llm_spark.model.initial_embedding import save_vectors, usual_deviation
from llm_spark.schemas import SEQUENCES
from llm_spark.tables.warehouse import Warehouse
from llm_spark.tokens import FIRST_ITEM_TOKEN
from llm_spark.transforms.item_vectors import reduced, scaled, session_words

NUM_PASSES = 5
MIN_SESSIONS_A_PARTITION = 1_000_000
"""Word2Vec averages what its partitions learnt apart, which costs quality: more than one only where there is much to read."""


@contextlib.contextmanager
def initial_embedding(
    warehouse: Warehouse, sequences_version: int, config: ModelConfig, seed: int, model_id: str
) -> Iterator[str | None]:
    """The path of the item vectors for as long as training needs them; None where the embedding begins at random, or no
    training session has two events.
    """
    if config.initial_embedding == "random":
        yield None
        return
    path = f"{warehouse.root}/staging/item-vectors-{model_id}.safetensors"
    with progress("train: Word2Vec"):
        training_sequences = warehouse.read(SEQUENCES, sequences_version).where(F.col("split") == "train")
        tokens_I, vectors_IE = item_vectors(training_sequences, config, seed)
        log.info("train: %s items begin at Word2Vec vectors, the others at random", f"{len(tokens_I):,}")
        if not len(tokens_I):
            yield None
            return
        save_vectors(path, torch.from_numpy(tokens_I), torch.from_numpy(vectors_IE))
    try:
        yield path
    finally:
        filesystem, name = locate(path)
        filesystem.rm_file(name)


def item_vectors(training_sequences: DataFrame, config: ModelConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [I], rising, of the items that share a session with another event, and their vectors [I, E] as training
    begins with them: skip-gram, reduced, and scaled to the deviation of random ones.
    """
    sessions = session_words(training_sequences).persist()
    num_sessions = sessions.count()
    size = config.word2vec_size or config.embedding_size
    if num_sessions == 0:
        sessions.unpersist()
        return np.zeros(0, dtype=np.int64), np.zeros((0, config.embedding_size))
    skip_gram = Word2Vec(
        vectorSize=size,
        minCount=1,
        numPartitions=-(-num_sessions // MIN_SESSIONS_A_PARTITION),
        maxIter=NUM_PASSES,
        seed=seed,
        inputCol="words",
        outputCol="vector",
    )
    rows = skip_gram.fit(sessions).getVectors().collect()
    sessions.unpersist()
    vector_of = {int(row["word"]): row["vector"].toArray() for row in rows if int(row["word"]) >= FIRST_ITEM_TOKEN}
    tokens_I = np.array(sorted(vector_of), dtype=np.int64)
    vectors_IF = np.array([vector_of[token] for token in tokens_I]).reshape(len(tokens_I), size)
    vectors_IE = scaled(reduced(vectors_IF, config.embedding_size), usual_deviation(config.embedding_size))
    return tokens_I, vectors_IE
