"""The softmax's weights: one row and one bias an item.

    logit_v = W_v . d + b_v                            W of its own, or tied: W = E, the embedding
    logit_v = scale * cos(W_v, d) + b_v                where `scale` is given

Tying an item's two vectors (Press and Wolf 2017; Hidasi and Karatzoglou 2018) halves the parameters, and each vector
learns from both of its uses. The cosine takes the vectors' lengths out of the score, which grow with an item's
frequency (Gupta et al. 2019, "NISER: Normalized Item and Session Representations to Handle Popularity Bias"); the bias
keeps what is known of frequency in one number an item.

Shape suffixes: V vocabulary rows, D context.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ItemHead(nn.Module):
    """Gives the weights [V, D] and biases [V] that the losses, the ranking and the scoring multiply contexts by."""

    def __init__(self, context_size: int, num_tokens: int, tied: bool, cosine_scale: float) -> None:
        super().__init__()
        self.cosine_scale = cosine_scale
        self.weight = None if tied else nn.Parameter(torch.empty(num_tokens, context_size))
        if self.weight is not None:
            nn.init.uniform_(self.weight, -(context_size**-0.5), context_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_tokens))

    def layer(self, embedding_VE: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and biases. `embedding_VE` stands in for the weights where they are tied."""
        weight_VD = embedding_VE if self.weight is None else self.weight
        return (F.normalize(weight_VD, dim=1) if self.cosine_scale else weight_VD), self.bias

    def scaled(self, contexts_WD: Tensor) -> Tensor:
        """The contexts as the weights want them: of length `cosine_scale`, where that is given."""
        return self.cosine_scale * F.normalize(contexts_WD, dim=1) if self.cosine_scale else contexts_WD
