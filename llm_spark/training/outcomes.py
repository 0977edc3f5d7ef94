"""The outcome heads' part in training: their share of the loss, and how well they do in validation.

A step's loss is a sum over targets that the loop divides by their number. So that each outcome's loss counts as a mean over
its own labels, its sum is multiplied by (targets / labels) of the whole training split: constant, known on all ranks, and
right on average over an epoch, however few labels a batch holds.

Shape suffixes: L moments, O outcomes, H bins of the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_spark.config import ModelConfig, OutcomeConfig
from llm_spark.model.calibration import amount_factors
from llm_spark.model.outcomes import Moments, OutcomeHead, amounts, outcome_losses
from llm_spark.training.distributed import Ranks

OUTCOMES_LOSS = "validation_loss_of_outcomes"
"""The outcomes' mean losses, each times its weight: what chooses the best weights when next items are not learnt."""
NUM_BINS = 8192
LARGEST_LOGIT = 16.0
"""Scores are counted in bins of logits, 1/256 wide, between minus and plus this: the AUC then adds up over ranks. Scores in one bin are tied."""


class OutcomeObjective:
    """Weighs the outcomes' losses, and measures them in validation, over all ranks."""

    def __init__(
        self,
        config: ModelConfig,
        num_targets: int = 0,
        num_labels_O: Tensor | None = None,
        head: OutcomeHead | None = None,
    ) -> None:
        """`num_targets` and `num_labels_O` count those of the training split; a model without outcomes needs neither. Each validation calibrates
        the `head`, where given, so that its factors are kept with the weights that they belong to."""
        if config.outcomes and num_labels_O is None:
            raise ValueError("a model that foretells outcomes needs the numbers of their labels to weigh its losses")
        self.outcomes: list[OutcomeConfig] = list(config.outcomes)
        labels = num_labels_O.tolist() if num_labels_O is not None else [0] * len(self.outcomes)
        self._scale_O = torch.tensor(
            [outcome.weight * num_targets / max(1, num) for outcome, num in zip(self.outcomes, labels, strict=True)]
        )
        self._is_amount_O = torch.tensor([outcome.kind == "amount" for outcome in self.outcomes], dtype=torch.bool)
        self._head = head
        self.begin_validation()

    def loss(self, outputs_LO: Tensor | None, moments: Moments | None) -> Tensor:
        """What is added to the loss that is summed over the targets; 0 where no outcome is foretold."""
        if outputs_LO is None or moments is None:
            return torch.zeros(())
        losses_O = outcome_losses(outputs_LO, moments.labels_LO, self._is_amount_O.to(outputs_LO.device))
        return losses_O @ self._scale_O.to(outputs_LO.device)

    def begin_validation(self) -> None:
        """Forget what was measured before."""
        num_outcomes = len(self.outcomes)
        self._sums_O2 = torch.zeros(num_outcomes, 2, dtype=torch.float64)
        self._amounts_O2 = torch.zeros(num_outcomes, 2, dtype=torch.float64)
        self._bins_O2H = torch.zeros(num_outcomes, 2, NUM_BINS, dtype=torch.float64)

    def add(self, outputs_LO: Tensor | None, moments: Moments | None) -> None:
        """Count one validation batch's moments of this rank."""
        if outputs_LO is None or moments is None:
            return
        outputs_LO, labels_LO = outputs_LO.cpu(), moments.labels_LO.cpu()
        known_LO = ~labels_LO.isnan()
        losses_O = outcome_losses(outputs_LO, labels_LO, self._is_amount_O)
        self._sums_O2 += torch.stack([losses_O.double(), known_LO.sum(dim=0).double()], dim=1)
        both_LO = (amounts(numbers_LO.double()).masked_fill(~known_LO, 0.0) for numbers_LO in (labels_LO, outputs_LO))
        self._amounts_O2 += torch.stack([numbers_LO.sum(dim=0) for numbers_LO in both_LO], dim=1)
        bins_LO = ((outputs_LO + LARGEST_LOGIT) / (2 * LARGEST_LOGIT) * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        for o in range(len(self.outcomes)):
            for label in (0, 1):
                chosen = bins_LO[labels_LO[:, o] == label, o]
                self._bins_O2H[o, label] += torch.bincount(chosen, minlength=NUM_BINS)

    def finish_validation(self, ranks: Ranks) -> dict[str, float]:
        """Over all ranks, by name: each outcome's mean loss, and for probabilities the area under the ROC curve where there are both labels;
        and OUTCOMES_LOSS. Empty where no moment of validation has a label. Calibrates the head.
        """
        if not self.outcomes:
            return {}
        parts = [self._sums_O2, self._amounts_O2, self._bins_O2H]
        totals = ranks.sum_over_ranks(torch.cat([part.flatten() for part in parts]).to(ranks.device)).cpu()
        summed = (
            total.view_as(part) for total, part in zip(totals.split([p.numel() for p in parts]), parts, strict=True)
        )
        sums_O2, amounts_O2, bins_O2H = summed
        if self._head is not None:
            self._head.calibrate(amount_factors(amounts_O2[:, 0], amounts_O2[:, 1]))
        found, weighted = {}, 0.0
        for outcome, (loss, num_labels), bins_2H in zip(self.outcomes, sums_O2.tolist(), bins_O2H, strict=True):
            if num_labels == 0:
                continue
            found[f"validation_loss_{outcome.name}"] = loss / num_labels
            weighted += outcome.weight * loss / num_labels
            auc = area_under_curve(bins_2H[0], bins_2H[1])
            if outcome.kind == "probability" and auc is not None:
                found[f"validation_auc_{outcome.name}"] = auc
        return {**found, OUTCOMES_LOSS: weighted} if found else {}


def area_under_curve(negatives_H: Tensor, positives_H: Tensor) -> float | None:
    """The chance that a positive's score stands above a negative's, ties counted half, from their counts in rising bins; None without both."""
    num_negatives, num_positives = float(negatives_H.sum()), float(positives_H.sum())
    if not num_negatives or not num_positives:
        return None
    below_H = negatives_H.cumsum(0) - negatives_H
    return float((positives_H * (below_H + negatives_H / 2)).sum()) / (num_negatives * num_positives)
