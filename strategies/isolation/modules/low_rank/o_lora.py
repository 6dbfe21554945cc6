"""O-LoRA: Wang et al. 2023, Orthogonal Subspace Learning for Continual Learning, https://arxiv.org/abs/2310.14152.

Defaults are those of the authors' code; its dropout of 0.1 is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import Batch, Isolation, Layers, LinearRole, Shared, Site
from forgetlab.plugins import register


@register("isolation", "o_lora")
class OLoRA(Isolation):
    """h = W0 x + s sum_i B_i A_i x, with lambda sum_(i < t) |A_i A_t^T| in the loss of task t."""

    speaks_for_all = True

    def __init__(
        self,
        rank: PositiveInt = 8,
        alpha: PositiveFloat = 32.0,
        weight: NonNegativeFloat = 0.5,  # lambda, of the penalty
        power: Literal[1, 2] = 1,  # of the entries of A_i A_t^T: 1 is their code's, 2 the paper's
        sites: tuple[LinearRole, ...] = ("attn.q", "attn.v"),
        layers: Layers = None,
    ) -> None:
        super().__init__(sites, layers)
        self.rank, self.scale, self.weight, self.power, self.earlier = rank, alpha / rank, weight, power, list[Any]()

    def make(self, site: Site) -> nn.Module:
        a = nn.init.kaiming_uniform_(torch.empty(self.rank, site.in_dim), a=math.sqrt(5))
        return nn.ParameterDict({"A": a, "B": torch.zeros(site.out_dim, self.rank)})

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        self.earlier = list(previous)

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)

    def _all(self, site: Site) -> list[Any]:
        return [module.parts[site.key] for module in (*self.earlier, self)]

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return sum((self.scale * F.linear(F.linear(x, p.A), p.B) for p in self._all(site)), y)

    def delta(self, part: Any, site: Site) -> Tensor:
        return sum((self.scale * p.B @ p.A for p in self._all(site)), torch.zeros_like(site.weight))

    def penalty(self) -> Tensor | None:
        found = [(p.A @ new.A.T).abs() for *old, new in map(self._all, self.sites) for p in old]
        return self.weight * torch.stack([one.pow(self.power).sum() for one in found]).sum() if found else None
