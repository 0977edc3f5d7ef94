"""The training loop: Adam with warm-up and cosine decay, clipping, autocast, validation each epoch, the best weights
kept.

The loss of a step is the sum over the global batch's targets divided by their number. The same code runs on one
rank and on many.

Shape suffixes: P steps with a target, D context, V vocabulary rows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_spark.config import TrainConfig
from llm_spark.errors import UserError
from llm_spark.model.history import HistoryBatch
from llm_spark.model.losses import NegativeSampler, full_cross_entropy, is_item, sampled_cross_entropy
from llm_spark.model.network import NextEventModel
from llm_spark.model.ranking import rank_targets
from llm_spark.training.batches import BatchSource
from llm_spark.training.distributed import GradientBuffer, Ranks
from llm_spark.training.job import Metric, Progress

RECALL_K = 20
FINAL_LEARNING_RATE_SHARE = 0.1
NUM_LOSS_METRICS = 200
"""About so many points of the loss curve go to the metrics, however long the run."""


@dataclass
class FitResult:
    """What the loop measured."""

    num_steps: int = 0
    num_tokens: int = 0
    final_loss: float = math.nan
    best_step: int = 0
    best_recall: float | None = None
    losses: list[float] = field(default_factory=list)
    """Mean loss of every step."""
    metrics: list[Metric] = field(default_factory=list)

    def measured(self, step: int, name: str, value: float) -> None:
        self.metrics.append(Metric(step, name, value, time.time()))


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: a linear climb over the warm-up, then a cosine to a tenth of the configured rate."""
    num_warmup_steps = min(config.warmup_steps, num_steps // 5)
    if step < num_warmup_steps:
        return config.learning_rate * (step + 1) / num_warmup_steps
    done = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    low = FINAL_LEARNING_RATE_SHARE
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class _Best:
    """The weights with the best validation so far."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] | None = None
        self.num_epochs_since = 0
        self._score = (-1.0, 0.0)

    def is_beaten_by(self, recall: float, loss: float, model: NextEventModel) -> bool:
        """Keep the model's weights if it validates better; of equal recalls, which few items bring about, the lower loss."""
        if (recall, -loss) <= self._score:
            self.num_epochs_since += 1
            return False
        self._score, self.num_epochs_since = (recall, -loss), 0
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return True


class Trainer:
    """One rank's part of a training run."""

    def __init__(
        self,
        model: NextEventModel,
        config: TrainConfig,
        source: BatchSource,
        ranks: Ranks,
        target_counts_V: Tensor,
        on_step: Callable[[Progress | None], None] = lambda progress: None,
    ) -> None:
        """`on_step` is called after every training step with its progress, and after every validation step with None."""
        self.model, self.config, self.source, self.ranks, self.on_step = model, config, source, ranks, on_step
        self._sampler = (
            NegativeSampler(target_counts_V.to(ranks.device), config.negative_power)
            if config.loss == "sampled"
            else None
        )
        self._generator = torch.Generator(ranks.device).manual_seed(config.seed + ranks.rank)
        # Loss, targets and tokens of the step travel with the gradients.
        self._buffer = GradientBuffer(model.parameters(), num_totals=3)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._num_steps = self._total_steps()
        self._autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def fit(self) -> FitResult:
        """Train, and leave the best weights in the model. Raises UserError when the loss is no longer a number."""
        result = FitResult()
        best = _Best()
        started = time.monotonic()
        for epoch in itertools.count():
            self._train_epoch(epoch, result, started)
            validated = self.validate()
            if validated is None:
                result.best_step = result.num_steps
            else:
                loss, recall = validated
                result.measured(result.num_steps, "validation_loss", loss)
                result.measured(result.num_steps, f"validation_recall_at_{RECALL_K}", recall)
                if best.is_beaten_by(recall, loss, self.model):
                    result.best_recall, result.best_step = recall, result.num_steps
            if result.num_steps >= self._num_steps or best.num_epochs_since >= max(1, self.config.patience):
                break
        if best.weights is not None:
            self.model.load_state_dict(best.weights)
        self.model.eval()
        return result

    def _train_epoch(self, epoch: int, result: FitResult, started: float) -> None:
        """All steps of one epoch, or those that are left of the run."""
        metric_interval = max(1, self._num_steps // NUM_LOSS_METRICS)
        loss_sum = num_targets = 0.0
        self.model.train()
        for index, batch in enumerate(self.source.training(epoch)):
            rate = learning_rate(result.num_steps, self._num_steps, self.config)
            step_loss_sum, step_targets, step_tokens = self._step(batch, rate)
            step_loss = step_loss_sum / max(1.0, step_targets)
            result.num_steps += 1
            if not math.isfinite(step_loss):
                raise UserError(
                    f"the loss is {step_loss} at step {result.num_steps} (epoch {epoch}, batch {index}): "
                    "lower train.learning_rate or train.clip_norm"
                )
            loss_sum, num_targets = loss_sum + step_loss_sum, num_targets + step_targets
            result.num_tokens += int(step_tokens)
            result.losses.append(step_loss)
            if result.num_steps % metric_interval == 0:
                result.measured(result.num_steps, "train_loss", step_loss)
                result.measured(result.num_steps, "learning_rate", rate)
            seconds = time.monotonic() - started
            seconds_left = seconds / result.num_steps * (self._num_steps - result.num_steps)
            speed = result.num_tokens / max(seconds, 1e-9)
            self.on_step(Progress(result.num_steps, self._num_steps, epoch, speed, step_loss, seconds_left))
            if result.num_steps >= self._num_steps:
                break
        result.final_loss = loss_sum / max(1.0, num_targets)
        result.measured(result.num_steps, "epoch_loss", result.final_loss)
        result.measured(result.num_steps, "tokens_per_second", result.num_tokens / (time.monotonic() - started))

    @torch.no_grad()
    def validate(self) -> tuple[float, float] | None:
        """Mean loss and recall@20 over all ranks' validation targets; None where there are none."""
        self.model.eval()
        totals = torch.zeros(3, dtype=torch.float64)
        for batch in self.source.validation():
            with self._autocast:
                contexts_PD, targets_P = self.model.forward_states(batch.to(self.ranks.device, non_blocking=True))
                ranks_P, log_probability_P = rank_targets(contexts_PD, targets_P, *self.model.output_layer())
            kept_P = is_item(targets_P)
            hits = (ranks_P[kept_P] <= RECALL_K).sum()
            totals += torch.stack(
                [-log_probability_P[kept_P].double().sum(), hits.double(), kept_P.sum().double()]
            ).cpu()
            self.on_step(None)
        loss_sum, num_hits, num_targets = self.ranks.sum_over_ranks(totals.to(self.ranks.device)).tolist()
        return (loss_sum / num_targets, num_hits / num_targets) if num_targets else None

    def _step(self, batch: HistoryBatch, rate: float) -> tuple[float, float, float]:
        """One optimizer step of all ranks; returns loss sum, targets and tokens of the global batch."""
        buffer = self._buffer
        buffer.zero()
        batch = batch.to(self.ranks.device, non_blocking=True)
        if batch.num_tokens:
            with self._autocast:
                contexts_PD, targets_P = self.model.forward_states(batch)
                loss = self._loss(contexts_PD, targets_P)
            loss.backward()
            buffer.totals.copy_(
                torch.stack([loss.detach(), is_item(targets_P).sum(), loss.new_tensor(batch.num_tokens)])
            )
        buffer.reduce(self.ranks)
        loss_sum, num_targets, num_tokens = buffer.totals.tolist()
        buffer.gradients.div_(max(1.0, num_targets))
        norm = buffer.gradients.norm()
        buffer.gradients.mul_((self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return loss_sum, num_targets, num_tokens

    def _loss(self, contexts_PD: Tensor, targets_P: Tensor) -> Tensor:
        weight_VD, bias_V = self.model.output_layer()
        if self._sampler is None:
            return full_cross_entropy(contexts_PD, targets_P, weight_VD, bias_V)
        return sampled_cross_entropy(
            contexts_PD,
            targets_P,
            weight_VD,
            bias_V,
            self._sampler,
            self.config.num_negatives,
            self._generator,
            self.config.num_batch_negatives,
        )

    def _total_steps(self) -> int:
        """Steps of `num_epochs` epochs; the last may be a fraction of one."""
        whole = int(self.config.num_epochs)
        fraction = self.config.num_epochs - whole
        steps = sum(self.source.num_steps(epoch) for epoch in range(whole))
        return steps + math.ceil(fraction * self.source.num_steps(whole)) if fraction else steps
