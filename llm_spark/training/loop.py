"""The training loop: Adam with warm-up and cosine decay, clipping, accumulation, autocast, validation each epoch, the best
weights kept, or the best average of weights; and checkpoints, from the last of which an interrupted run goes on.

The loss of a step is the sum over the global batch's targets divided by their number. The same code runs on one
rank and on many.

Shape suffixes: P steps with a target, D context, V vocabulary rows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_spark.config import TrainConfig
from llm_spark.errors import UserError
from llm_spark.model.calibration import fit_temperature
from llm_spark.model.history import HistoryBatch
from llm_spark.model.losses import NegativeSampler, full_cross_entropy, is_item, sampled_cross_entropy
from llm_spark.model.network import NextEventModel
from llm_spark.model.ranking import rank_targets
from llm_spark.training.averaging import WeightAverage
from llm_spark.training.batches import BatchSource
from llm_spark.training.checkpoint import CheckpointFolder
from llm_spark.training.distributed import GradientBuffer, Ranks
from llm_spark.training.job import Metric, Progress
from llm_spark.training.memory import told_where_memory_ends
from llm_spark.training.outcomes import OUTCOMES_LOSS, OutcomeObjective
from llm_spark.training.state import (
    FitResult,
    RunState,
    optimizer_tensors,
    random_states,
    restore_optimizer,
    restore_random_states,
    restore_weights,
)

RECALL_K = 20
FINAL_LEARNING_RATE_SHARE = 0.1
NUM_LOSS_METRICS = 200
"""About so many points of the loss curve go to the metrics, however long the run."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_CALIBRATION_TARGETS = 8192
"""Validation targets, over all ranks, that the temperature is fitted on: it is one number, known from these to about a percent."""
FIRST_LOSS_SCALE = 1024.0
"""Of fp16. Torch's 65,536 is meant for a mean; the loss here is a sum over hundreds of targets."""
SMALLEST_LOSS_SCALE = 1.0
"""The scale is halved whenever a gradient overflows. Down here it is not the scale's fault that they do."""


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: a linear climb over the warm-up, then a cosine to a tenth of the configured rate."""
    num_warmup_steps = min(config.warmup_steps, num_steps // 5)
    if step < num_warmup_steps:
        return config.learning_rate * (step + 1) / num_warmup_steps
    done = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    low = FINAL_LEARNING_RATE_SHARE
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _decay_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay is for matrices: drawn to zero, a vector (a bias, a newcomer's memory) forgets where the data's middle lies."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


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
        checkpoints: CheckpointFolder | None = None,
        on_metric: Callable[[Metric], None] = lambda metric: None,
        outcomes: OutcomeObjective | None = None,
    ) -> None:
        """`on_step` is called after every training step with its progress, and after every validation step with None.

        Without `checkpoints` none is written and none looked for. `outcomes` is needed by a model that foretells any.
        """
        self.model, self.config, self.source, self.ranks, self.on_step = model, config, source, ranks, on_step
        self._checkpoints, self._on_metric = checkpoints, on_metric
        self.outcomes = outcomes or OutcomeObjective(model.config)
        self._sampler = (
            NegativeSampler(target_counts_V.to(ranks.device), config.negative_power)
            if config.loss == "sampled"
            else None
        )
        self._generator = torch.Generator(ranks.device).manual_seed(config.seed + ranks.rank)
        # Loss, targets and tokens of the step travel with the gradients, and rank 0's word that a checkpoint is due.
        self._buffer = GradientBuffer(model.parameters(), num_totals=4)
        self._optimizer = torch.optim.AdamW(_decay_groups(model, config), lr=config.learning_rate, fused=True)
        self._average = WeightAverage(model, config.average_decay)
        self._num_steps = self._total_steps()
        dtype = AUTOCAST[config.precision]
        self._autocast = torch.autocast(ranks.device.type, dtype or torch.bfloat16, enabled=dtype is not None)
        self._scaler = torch.amp.GradScaler(
            ranks.device.type, init_scale=FIRST_LOSS_SCALE, enabled=config.precision == "fp16"
        )
        self._scaler.scale(torch.zeros(1, device=ranks.device))  # A rank whose first batch is empty needs a scale too.
        self._state = RunState()
        self._last_checkpoint_at = self._clock_began_at = time.monotonic()

    def fit(self) -> FitResult:
        """Train, from the last checkpoint on where there is one, and leave the best weights in the model.

        Raises UserError when loss or gradients are no longer finite, when memory is exhausted, and for a checkpoint of
        another run.
        """
        with told_where_memory_ends(
            self.model.config, self.config, self.ranks.rank, lambda: self._state.result.num_steps
        ):
            return self._fit()

    def _fit(self) -> FitResult:
        self._resume()
        state, best, result = self._state, self._state.best, self._state.result
        self._clock_began_at = time.monotonic() - state.position.seconds
        self._last_checkpoint_at = time.monotonic()
        while True:
            self._train_epoch()
            with self._average.in_place():
                self._validate_epoch()
            if result.num_steps >= self._num_steps or best.num_epochs_since >= max(1, self.config.patience):
                break
            state.position.begin_epoch(state.position.epoch + 1)
        self._average.swap()
        if best.weights is not None:
            self.model.load_state_dict(best.weights)
        self.model.eval()
        result.temperature = self._temperature()
        return result

    def _train_epoch(self) -> None:
        """All steps of one epoch, or those that are left of it or of the run."""
        position, result = self._state.position, self._state.result
        metric_interval = max(1, self._num_steps // NUM_LOSS_METRICS)
        self.model.train()
        batches = (
            self.source.training(position.epoch) if position.batches is None else self.source.resume(position.batches)
        )
        for batch in itertools.islice(batches, self._num_steps - result.num_steps):
            rate = learning_rate(result.num_steps, self._num_steps, self.config)
            loss_sum, num_targets, num_tokens, is_checkpoint_due = self._step(batch, rate)
            loss = loss_sum / max(1.0, num_targets)
            result.num_steps += 1
            self._average.update(result.num_steps)
            result.num_tokens += int(num_tokens)
            result.losses.append(loss)
            position.num_batches += 1
            position.loss_sum, position.num_targets = position.loss_sum + loss_sum, position.num_targets + num_targets
            position.seconds = time.monotonic() - self._clock_began_at
            if result.num_steps % metric_interval == 0:
                self._measured("train_loss", loss)
                self._measured("learning_rate", rate)
            if is_checkpoint_due:
                position.batches = batches.state()
                self._save()
            speed = result.num_tokens / max(position.seconds, 1e-9)
            seconds_left = position.seconds / result.num_steps * (self._num_steps - result.num_steps)
            self.on_step(Progress(result.num_steps, self._num_steps, position.epoch, speed, loss, seconds_left))
        result.final_loss = position.loss_sum / max(1.0, position.num_targets)
        self._measured("epoch_loss", result.final_loss)
        self._measured("tokens_per_second", result.num_tokens / max(position.seconds, 1e-9))

    def _validate_epoch(self) -> None:
        """Validate, and keep the weights if they are the best."""
        result = self._state.result
        validated = self.validate()
        of_outcomes = self.outcomes.finish_validation(self.ranks)
        for name, value in of_outcomes.items():
            self._measured(name, value)
        after = f"after step {result.num_steps}"
        self._refuse_unless_finite("outcomes' validation loss", of_outcomes.get(OUTCOMES_LOSS, 0.0), after)
        if not self.model.config.next_item_weight and of_outcomes:
            if self._state.best.is_beaten_by(0.0, of_outcomes[OUTCOMES_LOSS], self.model):
                result.best_step = result.num_steps
            return
        if validated is None:
            result.best_step = result.num_steps
            return
        loss, recall = validated
        self._measured("validation_loss", loss)
        # Numbers that are none rank first: a model that the epoch's last step broke would pass for perfect.
        self._refuse_unless_finite("validation loss", loss, after)
        self._measured(f"validation_recall_at_{RECALL_K}", recall)
        if self._state.best.is_beaten_by(recall, loss, self.model):
            result.best_recall, result.best_step = recall, result.num_steps

    @torch.no_grad()
    def validate(self) -> tuple[float, float] | None:
        """Mean loss and recall@20 over all ranks' validation targets; None where there are none, or next items are not learnt.

        Of the outcomes this rank's part is counted.
        """
        self.model.eval()
        self.outcomes.begin_validation()
        totals = torch.zeros(3, dtype=torch.float64)
        for batch in self.source.validation():
            with self._autocast:
                batch = batch.to(self.ranks.device, non_blocking=True)
                contexts_PD, targets_P, outputs_LO = self.model.forward_heads(batch)
                self.outcomes.add(outputs_LO, batch.moments)
                if not self.model.config.next_item_weight:
                    self.on_step(None)
                    continue
                ranks_P, log_probability_P = rank_targets(contexts_PD, targets_P, *self.model.output_layer())
            kept_P = is_item(targets_P)
            ranks_P = ranks_P[kept_P]
            hits = ((ranks_P >= 1) & (ranks_P <= RECALL_K)).sum()
            totals += torch.stack(
                [-log_probability_P[kept_P].double().sum(), hits.double(), kept_P.sum().double()]
            ).cpu()
            self.on_step(None)
        loss_sum, num_hits, num_targets = self.ranks.sum_over_ranks(totals.to(self.ranks.device)).tolist()
        return (loss_sum / num_targets, num_hits / num_targets) if num_targets else None

    @torch.no_grad()
    def _temperature(self) -> float:
        """What the logits are to be divided by, so that the probabilities hold, from some of all ranks' validation targets."""
        if not self.model.config.next_item_weight:
            return 1.0
        num_wanted = NUM_CALIBRATION_TARGETS // self.ranks.world_size
        contexts, targets = [], []
        for batch in self.source.validation():
            with self._autocast:
                contexts_PD, targets_P = self.model.forward_states(batch.to(self.ranks.device, non_blocking=True))
            kept_P = is_item(targets_P)
            contexts.append(contexts_PD[kept_P][:num_wanted].float())
            targets.append(targets_P[kept_P][:num_wanted])
            num_wanted -= len(targets[-1])
            self.on_step(None)
            if num_wanted <= 0:
                break
        weight_VD, bias_V = self.model.output_layer()
        if not targets:
            contexts, targets = [weight_VD[:0].float()], [torch.zeros(0, dtype=torch.long, device=weight_VD.device)]
        steps = (torch.cat(contexts), torch.cat(targets), weight_VD, bias_V)
        return fit_temperature(*steps, self.ranks.sum_over_ranks, lambda: self.on_step(None))

    def _step(self, batch: HistoryBatch, rate: float) -> tuple[float, float, float, bool]:
        """One optimizer step of all ranks; returns loss sum, targets and tokens of the global batch, and whether to write a checkpoint."""
        buffer, optimizer, scaler = self._buffer, self._optimizer, self._scaler
        buffer.zero()
        num_parts = self.config.accumulate
        negatives = self._generator.get_state() if num_parts > 1 else None
        for part in batch.parts(num_parts) if num_parts > 1 else [batch]:
            if negatives is not None:
                self._generator.set_state(negatives)  # One step has one set of negatives.
            self._add_gradients(part)
        if self.ranks.rank == 0 and self._checkpoints is not None:
            buffer.totals[3] = time.monotonic() - self._last_checkpoint_at >= self.config.checkpoint_seconds
        buffer.reduce(self.ranks)
        scaler.unscale_(optimizer)
        buffer.gradients.div_(buffer.totals[1].clamp(min=1.0))
        norm = buffer.gradients.norm()
        loss_sum, num_targets, num_tokens, is_due, norm_on_host = torch.cat([buffer.totals, norm[None]]).tolist()
        at = f"at step {self._state.result.num_steps + 1}"
        self._refuse_unless_finite("loss", loss_sum, at)
        # An overflow of the scaled loss's gradients is none of the gradients: fp16 leaves such a step out and scales less.
        if scaler.get_scale() <= SMALLEST_LOSS_SCALE:
            self._refuse_unless_finite("gradient's norm", norm_on_host, at)
        buffer.gradients.mul_((self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in optimizer.param_groups:
            group["lr"] = rate
        scaler.step(optimizer)
        scaler.update()
        return loss_sum, num_targets, num_tokens, bool(is_due)

    def _add_gradients(self, batch: HistoryBatch) -> None:
        """Forward and backward of this rank's batch or of a part of it, added to the buffer."""
        if not batch.num_tokens:
            return
        batch = batch.to(self.ranks.device, non_blocking=True)
        with self._autocast:
            contexts_PD, targets_P, outputs_LO = self.model.forward_heads(batch)
            loss = self.outcomes.loss(outputs_LO, batch.moments)
            if self.model.config.next_item_weight:
                loss = loss + self.model.config.next_item_weight * self._loss(contexts_PD, targets_P)
        if loss.requires_grad:  # not where nothing that is learnt is asked of the batch
            self._scaler.scale(loss).backward()
        self._buffer.totals[:3] += torch.stack(
            [loss.detach(), is_item(targets_P).sum(), loss.new_tensor(batch.num_tokens)]
        )

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

    def _measured(self, name: str, value: float) -> None:
        result = self._state.result
        result.measured(result.num_steps, name, value)
        self._on_metric(result.metrics[-1])

    def _save(self) -> None:
        """Write a checkpoint: rank 0, with the random numbers of all."""
        random = random_states(self.ranks, self._generator)
        if self.ranks.rank == 0 and self._checkpoints is not None:
            content, tensors = self._state.to_parts()
            tensors |= {
                "weights": self.model.state_dict(),
                "optimizer": optimizer_tensors(self.model, self._optimizer),
                "random": random,
            }
            if self._average.tensors:
                tensors["average"] = self._average.tensors
            content["loss_scale"] = self._scaler.state_dict()
            self._checkpoints.save(self._state.result.num_steps, content, tensors)
        self._last_checkpoint_at = time.monotonic()

    def _resume(self) -> None:
        """Take up the newest whole checkpoint, the one that rank 0 finds."""
        if self._checkpoints is None:
            return
        found = self._checkpoints.newest() if self.ranks.rank == 0 else None
        step = torch.tensor([found.step if found is not None else 0], device=self.ranks.device)
        chosen = int(self.ranks.sum_over_ranks(step))
        if chosen == 0:
            return
        if found is None:
            found = self._checkpoints.load(chosen)
        restore_weights(self.model, found.tensors["weights"], found.path)
        self._average.restore(found.tensors.get("average", {}))
        restore_optimizer(self.model, self._optimizer, found.tensors["optimizer"])
        restore_random_states(self.ranks, self._generator, found.tensors["random"])
        self._scaler.load_state_dict(found.state["loss_scale"])
        self._state = RunState.of_parts(found.state, found.tensors)

    def _refuse_unless_finite(self, what: str, value: float, where: str) -> None:
        if math.isfinite(value):
            return
        position = self._state.position
        kept = "" if self._checkpoints is None else self._checkpoints.describe()
        raise UserError(
            f"the {what} is {value} {where} (epoch {position.epoch}, batch {position.num_batches}): lower "
            f"train.learning_rate or train.clip_norm, which begins anew; with the same settings it ends here again{kept}"
        )
