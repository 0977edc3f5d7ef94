"""Item vectors that training begins with in place of random ones, in a safetensors file between driver and ranks.

Shape suffixes: I items with a vector, E embedding.
"""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from llm_spark.errors import UserError
from llm_spark.files import read_file, write_file
from llm_spark.model.network import NextEventModel
from llm_spark.tokens import FIRST_ITEM_TOKEN


def usual_deviation(embedding_size: int) -> float:
    """Standard deviation of a random embedding's numbers: such that an item's vector has about unit length."""
    return float(embedding_size**-0.5)


def save_vectors(path: str, tokens_I: Tensor, vectors_IE: Tensor) -> None:
    """Write the vectors by token, whole or not at all, to any file system that fsspec reaches."""
    content = {"tokens": tokens_I.to(torch.int64).contiguous(), "vectors": vectors_IE.float().contiguous()}
    write_file(path, safetensors.torch.save(content))


@torch.no_grad()
def begin_at_vectors(model: NextEventModel, path: str) -> int:
    """Put the file's vectors into the model's item embedding; returns for how many items. Others keep their random start.

    Raises UserError where the file is gone, its vectors are of another size, or hold what is no number.
    """
    content = read_file(path)
    if content is None:
        raise UserError(
            f"the item vectors at '{path}' are gone: run the train stage again, or model.initial_embedding=random"
        )
    vectors = safetensors.torch.load(content)
    tokens_I, vectors_IE = vectors["tokens"], vectors["vectors"]
    weight_VE = model.item_embedding.weight
    if vectors_IE.shape[1] != weight_VE.shape[1] or not bool(vectors_IE.isfinite().all()):
        raise UserError(
            f"the item vectors at '{path}' are no {weight_VE.shape[1]} finite numbers each: run the train stage again"
        )
    known_I = (tokens_I >= FIRST_ITEM_TOKEN) & (tokens_I < len(weight_VE))
    weight_VE[tokens_I[known_I].to(weight_VE.device)] = vectors_IE[known_I].to(weight_VE)
    return int(known_I.sum())
