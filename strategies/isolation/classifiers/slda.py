"""Deep streaming linear discriminant analysis: Hayes & Kanan 2020, https://arxiv.org/abs/1909.01520.

The paper updates its covariance sample by sample with weights that depend on their order, and shrinks it towards I.
Here it is the exact pooled covariance of all samples so far, shrunk towards I times the mean of its diagonal, so that
neither the order nor the features' scale matters. As in the paper all classes are equally likely beforehand.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from forgetlab.isolation import FromSums, means, ridge
from forgetlab.plugins import register


@register("classifier", "slda")
class StreamingLDA(FromSums):
    """Normal classes of one covariance S: logit_c = mu_c^T A (f - mu_c / 2), A = ((1 - s) S + s tr(S)/d I)^-1."""

    squares = True

    def __init__(self, shrinkage: Annotated[float, Field(gt=0, le=1)] = 1e-4) -> None:
        super().__init__()
        self.shrinkage = shrinkage

    def solve(self) -> dict[str, Tensor]:
        mu, y = means(self.sums), self.sums["y"]
        s = (self.sums["ff"] - (mu * y) @ mu.T) / y.sum()
        spread = s.diagonal().mean().item()
        scale = spread if spread > 0 else 1.0  # one sample of each class: no spread is known yet
        weight = ridge((1 - self.shrinkage) * s, mu, self.shrinkage * scale)
        return {"weight": weight, "intercept": -torch.sum(mu * weight, dim=0) / 2}
