"""EWC: Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, arXiv:1612.00796.

One penalty per past task, as in the paper. A sum of quadratics is a quadratic, so they are kept as one: its weight
A = sum_t F_t, its centre (sum_t F_t theta_t) / A, and a constant. The cost does not grow with the number of tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, padded, quadratic
from forgetlab.toolbox.fisher import Variant, fisher


@register("regularizer", "ewc")
class EWC(Regularizer):
    """strength / 2 * sum_t sum_i F_t,i (theta_i - theta_t,i)^2 (equation 3), F exact over all labels by default."""

    needs = frozenset({"boundaries", "passes"})
    kept: ClassVar[tuple[str, ...]] = ("weight", "centre", "constant")

    def __init__(self, strength: NonNegativeFloat = 1e3, fisher: Variant = "exact") -> None:
        super().__init__(strength)
        self.variant: Variant = fisher
        self.weight: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.constant = 0.0

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return (quadratic(model, self.weight, self.centre) + self.constant) / 2

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        for name, new in fisher(model, data, self.variant, seed=self.seed).items():
            theta = model.get_parameter(name).detach().clone()
            old = padded(self.weight.get(name, torch.zeros_like(theta)), theta)
            centre = padded(self.centre.get(name, theta), theta)
            both = old + new
            share = torch.where(both > 0, new / both, torch.ones_like(both))
            self.constant += float((old * share * (centre - theta) ** 2).sum())
            self.weight[name], self.centre[name] = both, centre + share * (theta - centre)
