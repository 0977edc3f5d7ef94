"""What is said when memory runs out: the settings that make the work at hand smaller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from llm_spark.config import ModelConfig, TrainConfig
from llm_spark.errors import UserError


@contextlib.contextmanager
def told_where_memory_ends(
    model: ModelConfig, train: TrainConfig, rank: int, num_steps: Callable[[], int] | None = None
) -> Iterator[None]:
    """Raises UserError in place of torch's errors of allocation; `num_steps` says how many steps are done.

    Once one is, weights, gradients and Adam's state have found their place: then it is the batch that is too large.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        num_done = num_steps() if num_steps is not None else 0
        where = "" if num_steps is None else f" at step {num_done + 1}"
        remedies = f"raise train.accumulate ({train.accumulate}), or lower train.batch_rows ({train.batch_rows})"
        if train.loss == "sampled":
            remedies += f", or lower train.num_negatives ({train.num_negatives})"
        if not num_done:
            sizes = f"model.embedding_size ({model.embedding_size}), model.hidden_size ({model.hidden_size})"
            remedies += f"; where the model itself is too large, lower {sizes} or sequences.max_items"
        raise UserError(f"out of memory{where} on rank {rank}: {remedies}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch raises a class of its own for a GPU's memory, and a RuntimeError that names the allocator for a CPU's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
