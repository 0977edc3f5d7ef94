"""An exponential moving average of the weights, which is what is validated and kept while training goes on with the weights.

    a_t = d_t a_{t-1} + (1 - d_t) w_t        after step t = 1, 2, ...; a_0 = w_0
    d_t = min(d, (1 + t) / (10 + t))

Steps of a noisy gradient wander about the minimum; their mean lies nearer to it than the last of them (Polyak and
Juditsky 1992, "Acceleration of stochastic approximation by averaging"). The exponential form forgets the way there,
and its decay begins low, so that the random weights of the beginning are soon out of it (the practice of TensorFlow's
ExponentialMovingAverage; Szegedy et al. 2016).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """One more copy of a model's weights, moved after every step. With a decay of 0 there is none, and nothing is done."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = dict(model.named_parameters()) if decay else {}
        self.tensors: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after this step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, weight in self._weights.items():
            self.tensors[name].lerp_(weight, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Change the model's weights for their average, or back; in place, so that whatever refers to them holds."""
        for name, weight in self._weights.items():
            average = self.tensors[name]
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """For as long as it lasts the model's weights are their average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors`, as they were."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])
