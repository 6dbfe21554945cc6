"""Recursive ridge: Zhuang et al. 2022, ACIL: Analytic Class-Incremental Learning, https://arxiv.org/abs/2205.14922.

The inverse and the weight are updated in place of the sums; both are at any time those of all samples so far at
once. As in the authors' code the features first go through a random layer without biases and relu, whose weights start
as torch's linear layers do; ``projection`` is its width, there 8,192 and more, and 0 leaves it out.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from forgetlab.isolation import RandomFeatures, count_classes, one_hot, wider
from forgetlab.plugins import register

AT_ONCE = 512  # samples


@register("classifier", "recursive_ridge", renewed="2026-12-01")
class RecursiveRidge(RandomFeatures):
    """R = (sum h h^T + s I)^-1, W = R sum h onehot(y)^T: R -= R H^T (I + H R H^T)^-1 H R, W += R H^T (Y - H W)."""

    def __init__(self, projection: NonNegativeInt = 2000, strength: PositiveFloat = 0.1) -> None:
        super().__init__(projection)
        self.strength = strength

    def draw(self, n_features: int, draws: torch.Generator) -> Tensor:
        bound = n_features**-0.5
        return torch.empty(n_features, self.width).uniform_(-bound, bound, generator=draws)

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        count_classes(self.sums, labels)
        for f, y in zip(features.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
            self._absorb(self.see(f), one_hot(y, len(self.sums["y"])))
        self._solved = None

    def _absorb(self, h: Tensor, y: Tensor) -> None:
        """(n, d), (n, C)"""
        if "weight" not in self.sums:
            self.sums["inverse"] = torch.eye(h.shape[1]).to(h) / self.strength
            self.sums["weight"] = h.new_zeros(h.shape[1], 0)
        r, w = self.sums["inverse"], wider(self.sums["weight"], y.shape[1])
        rh = r @ h.T
        r = r - rh @ torch.linalg.solve(torch.eye(len(h)).to(h) + h @ rh, rh.T)
        self.sums["inverse"] = (r + r.T) / 2  # what rounding makes unequal would grow
        self.sums["weight"] = w + self.sums["inverse"] @ (h.T @ (y - h @ w))

    def solve(self) -> dict[str, Tensor]:
        return {name: self.sums[name] for name in ("projection", "weight") if name in self.sums}
