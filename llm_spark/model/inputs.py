"""The further numbers of a step, beside item, event type and value: the time gap, and numeric attributes by config.

    x_t += B [z_t, missing_t],    z_tk = clamp((v_tk - mean_k) / std_k), 0 where v_tk is missing

Mean and deviation are those of the training split. The time gap of an event is log(1 + seconds since the event before it
in the row): known as soon as the event is, so that the step that predicts it does not see it. A row's first event has
none.

Shape suffixes: N tokens, P steps, K numbers, F further features, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm_spark.config import ModelConfig
from llm_spark.model.history import HistoryBatch

MAX_STANDARDISED_VALUE = 8.0
"""Standardised numbers are cut here: one order of 80,000 pieces must not drown the item."""


def num_step_numbers(config: ModelConfig) -> int:
    """K: how many numbers `step_numbers` gives an event."""
    return int(config.use_time_gaps) + len(config.features)


def step_numbers(batch: HistoryBatch, config: ModelConfig) -> Tensor:
    """The numbers [N, K] of every event, float32, NaN where one is missing: the time gap first.

    Raises ValueError when the batch does not hold as many further features as the model takes.
    """
    numbers = []
    if config.use_time_gaps:
        numbers.append(batch.log_gaps().to(batch.values_N.device, non_blocking=True)[:, None])
    if config.features:
        if batch.features_NF.shape[1] != len(config.features):
            raise ValueError(
                f"column features holds {batch.features_NF.shape[1]} numbers an event where the model takes "
                f"{len(config.features)} ({', '.join(config.features)})"
            )
        numbers.append(batch.features_NF)
    return torch.cat(numbers, dim=1) if numbers else batch.values_N.new_zeros(batch.num_tokens, 0)


class NumberInput(nn.Module):
    """Standardises the numbers, replaces missing ones by the mean and a flag, and maps both to the embedding's size."""

    mean_K: Tensor
    std_K: Tensor

    def __init__(self, num_numbers: int, embedding_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * num_numbers, embedding_size, bias=False)
        self.register_buffer("mean_K", torch.zeros(num_numbers))
        self.register_buffer("std_K", torch.ones(num_numbers))

    def standardise_by(self, mean_K: Tensor, std_K: Tensor) -> None:
        """Take over the training split's means and deviations."""
        self.mean_K.copy_(mean_K)
        self.std_K.copy_(std_K)

    def forward(self, numbers_PK: Tensor) -> Tensor:
        """What is added to the embedding [P, E]; `numbers_PK` is NaN where a number is missing."""
        missing_PK = numbers_PK.isnan()
        limit = MAX_STANDARDISED_VALUE
        standardised_PK = ((numbers_PK - self.mean_K) / self.std_K).clamp(-limit, limit).masked_fill(missing_PK, 0.0)
        inputs_PE: Tensor = self.linear(torch.cat([standardised_PK, missing_PK.to(numbers_PK.dtype)], dim=1))
        return inputs_PE
