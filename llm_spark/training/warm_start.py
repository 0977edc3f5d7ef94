"""Begin a model with the weights of an earlier one, whose vocabulary may have been smaller.

Tokens are append-only, so row i of an embedding is the same item in both. New rows begin so that the grown model
predicts of the old items what the earlier one did:

- as inputs, with the row of the unknown code: what the earlier model took a new item for;
- in the softmax, with the mean of the items' rows, and a bias that stands to theirs as its frequency does;
- where embedding and softmax share their rows, with the items' mean.

Shape suffixes: V vocabulary rows, I items of the earlier model.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from llm_spark.config import ModelConfig
from llm_spark.model.network import NextEventModel
from llm_spark.tokens import FIRST_ITEM_TOKEN, UNKNOWN_TOKEN

WITHOUT_SHAPE = frozenset({"dropout"})
"""Settings of the model that have no part in what its weights mean."""


def differing_setting(parent: ModelConfig, config: ModelConfig) -> str:
    """The first setting in which a model's config differs from its parent's so that weights cannot be taken over, or nothing."""
    was = asdict(parent)
    for name, value in asdict(config).items():
        if name not in WITHOUT_SHAPE and was[name] != value:
            return f"model.{name} is {value!r} and was {was[name]!r}"
    return ""


@torch.no_grad()
def take_over(model: NextEventModel, parent: NextEventModel, target_counts_V: Tensor) -> None:
    """Copy the parent's weights and value statistics; begin the rows of new items and event types as the module says.

    `target_counts_V` counts each token as a target of the new training data. Raises ValueError when the parent has more
    tokens, or a tensor that does not fit.
    """
    old, new = parent.state_dict(), model.state_dict()
    for name, tensor in new.items():
        if name not in old or old[name].shape[1:] != tensor.shape[1:] or old[name].shape[:1] > tensor.shape[:1]:
            raise ValueError(f"{name} is {tuple(tensor.shape)} and the parent's {tuple(old.get(name, Tensor()).shape)}")
        if tensor.dim() == 0 or len(old[name]) == len(tensor):
            tensor.copy_(old[name])
            continue
        num_old = len(old[name])
        tensor[:num_old] = old[name]
        if name == "head.bias":
            tensor[num_old:] = _biases_of_new_items(old[name], target_counts_V).to(tensor.device)
        elif name.startswith("head.") or (name == "item_embedding.weight" and "head.weight" not in new):
            tensor[num_old:] = old[name][FIRST_ITEM_TOKEN:].mean(dim=0)
        else:
            tensor[num_old:] = old[name][UNKNOWN_TOKEN]


def _biases_of_new_items(old_bias_V: Tensor, target_counts_V: Tensor) -> Tensor:
    """Log frequency, moved by what the old items' biases are above theirs in the mean."""
    log_frequency_V = (target_counts_V.cpu().double() + 1).log()
    num_old = len(old_bias_V)
    old_I = slice(FIRST_ITEM_TOKEN, num_old)
    offset = (old_bias_V[old_I].cpu().double() - log_frequency_V[old_I]).mean()
    return (log_frequency_V[num_old:] + offset).to(old_bias_V.dtype)
