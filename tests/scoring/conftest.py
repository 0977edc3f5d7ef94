from __future__ import annotations

import pytest
import torch

from llm_spark.config import ModelConfig
from llm_spark.model.artifact import save_content, save_manifest
from llm_spark.model.network import NextEventModel

NUM_TOKENS, NUM_EVENT_TYPES = 15, 4


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained model of 15 tokens and 4 event types, whose logits differ plainly."""
    folder = str(tmp_path_factory.mktemp("scoring") / "model")
    torch.manual_seed(0)
    config = ModelConfig(embedding_size=5, hidden_size=6, dense_size=7, memory_size=4)
    model = NextEventModel(config, NUM_TOKENS, NUM_EVENT_TYPES)
    with torch.no_grad():
        model.head.weight.mul_(5)  # an untrained head gives near-equal logits, whose order rounding decides
    save_manifest(folder, save_content(folder, model, {}, {}))
    return folder
