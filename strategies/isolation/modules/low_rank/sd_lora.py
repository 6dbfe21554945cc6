"""SD-LoRA: Wu et al. 2025, Scalable Decoupled Low-Rank Adaptation, https://arxiv.org/abs/2501.13198.

As in the authors' code, a task has one magnitude for all sites, each task trains all tasks' magnitudes anew, and a
direction has length 1 only once later tasks use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import Batch, Isolation, Layers, LinearRole, Shared, Site
from forgetlab.plugins import register


@register("isolation", "sd_lora")
class SDLoRA(Isolation):
    """h = W0 x + sum_(i < t) a_i B_i A_i x / (|B_i| |A_i|) + a_t B_t A_t x, with Frobenius norms."""

    speaks_for_all = True

    def __init__(
        self,
        rank: PositiveInt = 10,
        magnitude: PositiveFloat = 0.8,  # where each a_i starts
        sites: tuple[LinearRole, ...] = ("attn.q", "attn.v"),
        layers: Layers = None,
    ) -> None:
        super().__init__(sites, layers)
        self.rank, self.magnitude, self.earlier = rank, magnitude, list[Any]()  # modules not registered
        self.magnitudes = nn.Parameter(torch.full((1,), magnitude))

    def make(self, site: Site) -> nn.Module:
        a = nn.init.kaiming_uniform_(torch.empty(self.rank, site.in_dim), a=math.sqrt(5))
        return nn.ParameterDict({"A": a, "B": torch.zeros(site.out_dim, self.rank)})

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        self.earlier = list(previous)  # the optimizer holds the parameter already, so it grows in place:
        self.magnitudes.data = self.magnitudes.new_full((len(previous) + 1,), self.magnitude)

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)

    def _terms(self, site: Site) -> list[tuple[Tensor, Any]]:
        """Each task's scale and its A and B."""
        old: list[Any] = [module.parts[site.key] for module in self.earlier]
        lengths = [(p.A.norm() * p.B.norm()).clamp(min=1e-12) for p in old] + [1.0]
        return [(a / n, p) for a, n, p in zip(self.magnitudes, lengths, (*old, self.parts[site.key]), strict=True)]

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return sum((scale * F.linear(F.linear(x, p.A), p.B) for scale, p in self._terms(site)), y)

    def delta(self, part: Any, site: Site) -> Tensor:
        return sum((scale * p.B @ p.A for scale, p in self._terms(site)), torch.zeros_like(site.weight))
