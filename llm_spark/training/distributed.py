"""Data parallelism: the ranks of one run, and one all-reduce a step for gradients, loss and counts together.

Each rank sums the loss over its own targets; gradients and the number of targets are summed over the ranks in one
flat buffer, and only then divided. So N ranks that share a global batch make the step that one rank with all of it
would make, whatever each rank's part of it, even none: torch's DistributedDataParallel averages over ranks instead,
and wants every parameter to take part in every rank's step.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed
from torch import Tensor, nn

from llm_spark.errors import UserError


class PeerLostError(Exception):
    """A collective operation failed: another rank ended, or came too late. The fault is not this rank's."""


class Ranks:
    """The processes that train one model together, seen from one of them. A single rank needs no process group."""

    def __init__(
        self, rank: int, world_size: int, device: torch.device, on_wait: Callable[[bool], None] = lambda waiting: None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._on_wait = on_wait

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over all ranks, in place. Raises PeerLostError."""
        if self.world_size > 1:
            self._on_wait(True)
            try:
                torch.distributed.all_reduce(tensor)
            except RuntimeError as error:
                raise PeerLostError(f"lost contact with the other ranks: {str(error).splitlines()[0]}") from error
            self._on_wait(False)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor of one shape and type, [world_size, ...] on the host. Raises PeerLostError."""
        gathered = torch.zeros(self.world_size, *tensor.shape, dtype=tensor.dtype, device=self.device)
        gathered[self.rank] = tensor.to(self.device)
        return self.sum_over_ranks(gathered).cpu()


@contextlib.contextmanager
def join_ranks(device_setting: str, timeout_seconds: float, on_wait: Callable[[bool], None]) -> Iterator[Ranks]:
    """Meet the other ranks, as torchrun's environment names them, over nccl on GPUs and gloo on CPUs."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = choose_device(device_setting, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        on_wait(True)
        timeout = datetime.timedelta(seconds=timeout_seconds)
        try:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        except RuntimeError as error:
            raise PeerLostError(f"the other ranks did not come: {str(error).splitlines()[0]}") from error
        on_wait(False)
    yield Ranks(rank, world_size, device, on_wait)
    if world_size > 1:
        torch.distributed.destroy_process_group()


def choose_device(setting: str, local_rank: int, num_local_ranks: int) -> torch.device:
    """The device of a rank: a GPU of its own where there are any, unless `setting` is cpu.

    Raises UserError when there are fewer GPUs than ranks here, or none and `setting` is cuda.
    """
    num_gpus = torch.cuda.device_count() if setting != "cpu" else 0
    if num_gpus == 0 and setting == "cuda":
        raise UserError("train.device is 'cuda' and torch finds no GPU here: give train.device=cpu, or auto")
    if num_gpus == 0:
        return torch.device("cpu")
    if num_local_ranks > num_gpus:
        raise UserError(
            f"{num_local_ranks} ranks share a machine of {num_gpus} GPUs: give train.num_ranks={num_gpus} or train.device=cpu"
        )
    return torch.device("cuda", local_rank)


class GradientBuffer:
    """All gradients, and a few totals of the step, in one flat float32 tensor, so that one all-reduce carries them."""

    def __init__(self, parameters: Iterable[nn.Parameter], num_totals: int) -> None:
        self._parameters = list(parameters)
        num_gradients = sum(p.numel() for p in self._parameters)
        self._flat = torch.zeros(num_gradients + num_totals, device=self._parameters[0].device)
        self.gradients = self._flat[:num_gradients]
        self.totals = self._flat[num_gradients:]
        first = 0
        for parameter in self._parameters:
            parameter.grad = self._flat[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()

    def zero(self) -> None:
        """Begin a step: backward passes add to the gradients from here on."""
        self._flat.zero_()

    def reduce(self, ranks: Ranks) -> None:
        """Sum gradients and totals over the ranks."""
        ranks.sum_over_ranks(self._flat)
