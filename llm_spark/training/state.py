"""All that a training run would lose if it ended now: its position, its measurements, and the tensors that steps change.

A run that takes this up again goes on as if it had never ended: on one CPU to the bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llm_spark.errors import UserError
from llm_spark.training.distributed import Ranks
from llm_spark.training.job import Metric

Tensors = dict[str, Tensor]


@dataclass
class FitResult:
    """What the loop measured."""

    num_steps: int = 0
    num_tokens: int = 0
    final_loss: float = math.nan
    best_step: int = 0
    best_recall: float | None = None
    temperature: float = 1.0
    """What logits are divided by to make probabilities, fitted on validation."""
    resumed_at_step: int | None = None
    """The last checkpoint's, where the run had one to go on from."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of every step."""
    metrics: list[Metric] = field(default_factory=list)

    def measured(self, step: int, name: str, value: float) -> None:
        self.metrics.append(Metric(step, name, value, time.time()))


@dataclass
class Best:
    """The weights with the best validation so far."""

    weights: Tensors | None = None
    num_epochs_since: int = 0
    recall: float = -1.0
    loss: float = math.inf

    def is_beaten_by(self, recall: float, loss: float, model: nn.Module) -> bool:
        """Keep the model's weights if it validates better; of equal recalls, which few items bring about, the lower loss."""
        if (recall, -loss) <= (self.recall, -self.loss):
            self.num_epochs_since += 1
            return False
        self.recall, self.loss, self.num_epochs_since = recall, loss, 0
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return True


@dataclass
class Position:
    """Where in the data a run stands, and what it has added up on the way."""

    epoch: int = 0
    num_batches: int = 0
    """Taken of this epoch."""
    batches: dict[str, Any] | None = None
    """The source's own account of that; None at the beginning of an epoch."""
    loss_sum: float = 0.0
    num_targets: float = 0.0
    """Loss and targets of this epoch."""
    seconds: float = 0.0
    """Spent in training, by all processes that took part in turn."""

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.num_batches, self.batches, self.loss_sum, self.num_targets = epoch, 0, None, 0.0, 0.0


@dataclass
class RunState:
    """Position, measurements and best weights of one run."""

    position: Position = field(default_factory=Position)
    result: FitResult = field(default_factory=FitResult)
    best: Best = field(default_factory=Best)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensors]]:
        """As JSON, and as tensors: the loss of every step among them, since it grows with the run."""
        result = {name: value for name, value in asdict(self.result).items() if name != "losses"}
        best = {name: value for name, value in vars(self.best).items() if name != "weights"}
        content = {"position": asdict(self.position), "result": result, "best": best}
        tensors = {"losses": {"losses": torch.tensor(self.result.losses, dtype=torch.float64)}}
        if self.best.weights is not None:
            tensors["best"] = self.best.weights
        return content, tensors

    @classmethod
    def of_parts(cls, content: dict[str, Any], tensors: dict[str, Tensors]) -> RunState:
        result = FitResult(**content["result"])
        result.metrics = [Metric(**metric) for metric in content["result"]["metrics"]]
        result.losses = tensors["losses"]["losses"].tolist()
        result.resumed_at_step = result.num_steps
        best = Best(weights=tensors.get("best"), **content["best"])
        return cls(Position(**content["position"]), result, best)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's state by the name of the parameter, `head.weight/exp_avg` for one."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give the optimizer the state back that `optimizer_tensors` took."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def restore_weights(model: nn.Module, weights: Tensors, where: str) -> None:
    """Load weights. Raises UserError naming the first tensor that is not as the model's."""
    for name, tensor in model.state_dict().items():
        if name not in weights or weights[name].shape != tensor.shape:
            found = "does not hold it" if name not in weights else f"has {tuple(weights[name].shape)}"
            raise UserError(f"{name} is {tuple(tensor.shape)} in this model and {where} {found}: remove that folder")
    model.load_state_dict(weights)


def random_states(ranks: Ranks, generator: torch.Generator) -> Tensors:
    """Every rank's generators of random numbers, one row a rank: torch's own and the loss's."""
    states = {"torch": torch.get_rng_state(), "loss": generator.get_state()}
    if ranks.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return {name: ranks.gather(state) for name, state in states.items()}


def restore_random_states(ranks: Ranks, generator: torch.Generator, states: Tensors) -> None:
    """Set this rank's generators to what `random_states` found."""
    # Each in memory of its own: torch reads a state from where the tensor's storage begins, which is rank 0's row.
    own = {name: states_R[ranks.rank].clone() for name, states_R in states.items()}
    torch.set_rng_state(own["torch"])
    generator.set_state(own["loss"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], ranks.device)
