"""The outcome heads: at a moment, what the user will do within some days after it.

    u = relu(W_u [d_t, z] + b_u),    s = relu(W_s z + b_s)
    p(event within N days) = sigmoid(w . [u, s] + b), or log(1 + amount) = w . [u, s] + b

The amount itself is foretold as factor * (exp(w . [u, s] + b) - 1), with one factor for each outcome, fitted on validation (calibration.py).

with d_t the context after the event at step t, as the next item is predicted from it, and z what direct marketing has
always known: log(1 + .) of the time elapsed since that event (recency), of the visits so far (frequency), of the sum of
their values (monetary value), and of the time from the first to the latest event, standardised. A recurrent state counts
and adds up badly; with a hidden layer of their own (wide and deep: Cheng et al. 2016), the context only has to tell what
these numbers do not. Losses are
binary cross entropy and squared error, summed over the moments; a moment whose window is not closed yet has no label and
carries none.

Shape suffixes: L moments, B rows, O outcomes, D context, N tokens, A numbers of the account (z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_spark.config import OutcomeConfig

HIDDEN_SIZE = 64
NUM_ACCOUNT_NUMBERS = 4


def account_numbers(known_L3: Tensor, elapsed_L: Tensor) -> Tensor:
    """The head's numbers [L, A], not standardised yet: those of `HistoryBatch.account`, and log(1 + seconds elapsed)."""
    return torch.cat([known_L3, elapsed_L.to(known_L3.device).log1p()[:, None]], dim=1)


@dataclass(frozen=True)
class Moments:
    """What is asked of the histories of one batch."""

    place_L: Tensor
    """int64, on the host: global position of the latest token that is known."""
    elapsed_L: Tensor
    """float32: seconds from the latest event to the moment."""
    labels_LO: Tensor
    """float32: 0 or 1, or log(1 + amount); NaN where it is not known yet."""

    @classmethod
    def from_columns(
        cls,
        places: Tensor,
        offsets: Tensor,
        elapsed_seconds: Tensor,
        labels: Tensor,
        row_offsets: Tensor,
        num_outcomes: int,
    ) -> Moments:
        """Build moments from the flat list columns of the sequences table; `offsets` are those of `places`.

        Raises ValueError when a place lies outside its row, or the columns do not fit each other.
        """
        if elapsed_seconds.numel() != places.numel() or labels.numel() != places.numel() * num_outcomes:
            raise ValueError(
                f"column outcome_labels holds {labels.numel()} labels and outcome_elapsed_seconds {elapsed_seconds.numel()} "
                f"times for {places.numel()} moments of {num_outcomes} outcomes"
            )
        num_moments_B = offsets.diff()
        place_L = places.to(torch.int64)
        length_L = torch.repeat_interleave(row_offsets.diff(), num_moments_B)
        if bool(((place_L < 0) | (place_L >= length_L)).any()):
            raise ValueError("column outcome_places names a position outside its row")
        return cls(
            place_L + torch.repeat_interleave(row_offsets[:-1], num_moments_B),
            elapsed_seconds.to(torch.float32),
            labels.to(torch.float32).view(-1, num_outcomes),
        )

    def between(self, begin: int, end: int) -> Moments:
        """The moments of the tokens [begin, end), positions counted from `begin`."""
        inside_L = (self.place_L >= begin) & (self.place_L < end)
        on_device_L = inside_L.to(self.labels_LO.device)
        return Moments(self.place_L[inside_L] - begin, self.elapsed_L[on_device_L], self.labels_LO[on_device_L])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Moments:
        """The same moments with what the head and the loss take on `device`."""
        elapsed_L = self.elapsed_L.to(device, non_blocking=non_blocking)
        return Moments(self.place_L, elapsed_L, self.labels_LO.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Moments:
        return Moments(self.place_L, self.elapsed_L.pin_memory(), self.labels_LO.pin_memory())


class OutcomeHead(nn.Module):
    """All outcomes of a model, on one hidden layer."""

    is_amount_O: Tensor
    factor_O: Tensor
    """float32: of the amounts; 1 where none was fitted, and for probabilities."""
    mean_A: Tensor
    std_A: Tensor

    def __init__(self, context_size: int, outcomes: Sequence[OutcomeConfig]) -> None:
        super().__init__()
        self.hidden = nn.Linear(context_size + NUM_ACCOUNT_NUMBERS, HIDDEN_SIZE)
        self.account = nn.Linear(NUM_ACCOUNT_NUMBERS, HIDDEN_SIZE)
        self.register_buffer("mean_A", torch.zeros(NUM_ACCOUNT_NUMBERS))
        self.register_buffer("std_A", torch.ones(NUM_ACCOUNT_NUMBERS))
        self.output = nn.Linear(2 * HIDDEN_SIZE, len(outcomes))
        is_amount_O = torch.tensor([outcome.kind == "amount" for outcome in outcomes])
        self.register_buffer("is_amount_O", is_amount_O, persistent=False)
        self.register_buffer("factor_O", torch.ones(len(outcomes)))
        self.register_load_state_dict_pre_hook(_with_factors)

    @torch.no_grad()
    def begin_at(self, mean_O: Tensor, mean_A: Tensor, std_A: Tensor) -> None:
        """Set the bias to what the training split's labels are on average, and how its numbers are standardised."""
        self.mean_A.copy_(mean_A)
        self.std_A.copy_(std_A)
        mean_O = mean_O.to(self.output.bias.device, torch.float32)
        self.output.bias.copy_(torch.where(self.is_amount_O, mean_O, mean_O.clamp(1e-6, 1 - 1e-6).logit()))

    def forward(self, contexts_LD: Tensor, numbers_LA: Tensor) -> Tensor:
        """Logits of the probabilities, and log(1 + amount), [L, O]; `numbers_LA` are `account_numbers`."""
        numbers_LA = ((numbers_LA - self.mean_A) / self.std_A).to(contexts_LD.dtype)
        of_both_LH = self.hidden(torch.cat([contexts_LD, numbers_LA], dim=1))
        outputs_LO: Tensor = self.output(torch.relu(torch.cat([of_both_LH, self.account(numbers_LA)], dim=1)))
        return outputs_LO.float()

    def predictions(self, outputs_LO: Tensor) -> Tensor:
        """Probabilities, and amounts in the unit of the values, [L, O]."""
        return torch.where(self.is_amount_O, amounts(outputs_LO) * self.factor_O, outputs_LO.sigmoid())

    def calibrate(self, factor_O: Tensor) -> None:
        """Multiply the amounts by these."""
        self.factor_O.copy_(torch.where(self.is_amount_O, factor_O.to(self.factor_O), torch.ones_like(self.factor_O)))


def _with_factors(head: OutcomeHead, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Models that an earlier version of this program trained have no factors."""
    state.setdefault(f"{prefix}factor_O", torch.ones_like(head.factor_O))


def amounts(outputs_LO: Tensor) -> Tensor:
    """What log(1 + amount) stands for, below 0 taken as 0."""
    return outputs_LO.clamp(min=0).expm1()


def outcome_losses(outputs_LO: Tensor, labels_LO: Tensor, is_amount_O: Tensor) -> Tensor:
    """Loss of each outcome [O], summed over the moments that have a label."""
    known_LO = ~labels_LO.isnan()
    labels_LO = labels_LO.masked_fill(~known_LO, 0.0)
    entropy_LO = F.binary_cross_entropy_with_logits(outputs_LO, labels_LO.clamp(max=1.0), reduction="none")
    losses_LO = torch.where(is_amount_O, (outputs_LO - labels_LO).square(), entropy_LO)
    return losses_LO.masked_fill(~known_LO, 0.0).sum(dim=0)
