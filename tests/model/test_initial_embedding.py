from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_spark.errors import UserError
from llm_spark.model.initial_embedding import begin_at_vectors, save_vectors, usual_deviation
from tests.model.test_network import NUM_TOKENS, small_model

EMBEDDING_SIZE = 5


def test_items_with_a_vector_begin_at_it_and_all_others_where_they_were(tmp_path: Path) -> None:
    model, untouched = small_model(), small_model()
    path = str(tmp_path / "vectors.safetensors")
    vectors = torch.arange(15.0).view(3, EMBEDDING_SIZE)
    save_vectors(path, torch.tensor([4, 2, 9]), vectors)
    assert begin_at_vectors(model, path) == 3
    weight = model.item_embedding.weight
    assert torch.equal(weight[[4, 2, 9]], vectors)
    others = [token for token in range(NUM_TOKENS) if token not in (4, 2, 9)]
    assert torch.equal(weight[others], untouched.item_embedding.weight[others])


def test_padding_unknown_and_tokens_beyond_the_vocabulary_get_no_vector(tmp_path: Path) -> None:
    model, untouched = small_model(), small_model()
    path = str(tmp_path / "vectors.safetensors")
    save_vectors(path, torch.tensor([0, 1, NUM_TOKENS]), torch.ones(3, EMBEDDING_SIZE))
    assert begin_at_vectors(model, path) == 0
    assert torch.equal(model.item_embedding.weight, untouched.item_embedding.weight)


def test_a_random_embedding_has_the_usual_deviation() -> None:
    weight = small_model(4_000, embedding_size=64).item_embedding.weight
    assert weight.std().item() == pytest.approx(usual_deviation(64), rel=0.02)


@pytest.mark.parametrize("vectors", [torch.ones(2, EMBEDDING_SIZE + 1), torch.full((2, EMBEDDING_SIZE), torch.nan)])
def test_vectors_of_another_size_or_not_finite_are_refused(tmp_path: Path, vectors: torch.Tensor) -> None:
    path = str(tmp_path / "vectors.safetensors")
    save_vectors(path, torch.tensor([2, 3]), vectors)
    with pytest.raises(UserError, match="no 5 finite numbers each"):
        begin_at_vectors(small_model(), path)


def test_vectors_that_are_gone_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"are gone: run the train stage again, or model.initial_embedding=random"):
        begin_at_vectors(small_model(), str(tmp_path / "nothing.safetensors"))
