"""InfLoRA: Liang & Li 2024, Interference-Free Low-Rank Adaptation, https://arxiv.org/abs/2404.00228.

As their code, without its second form for large spaces, and A is projected again where few directions are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Batch, Isolation, Layers, LinearRole, Shared, Site
from forgetlab.plugins import register


@register("isolation", "inflora")
class InfLoRA(Isolation):
    """W = W0 + sum_i B_i A_i; A_t spans the task's inputs outside the space of earlier ones, only B_t is trained."""

    needs, speaks_for_all = frozenset({"boundaries", "passes"}), True

    def __init__(
        self,
        rank: PositiveInt = 10,
        threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95,  # the share of its inputs that a task's space holds
        rise: PositiveInt = 10,  # the tasks over which it rises towards 1: as many as there are
        sites: tuple[LinearRole, ...] = ("attn.k", "attn.v"),
        layers: Layers = None,
    ) -> None:
        super().__init__(sites, layers)
        self.rank, self.threshold, self.rise, self.earlier = rank, threshold, rise, list[Any]()  # not registered

    def make(self, site: Site) -> nn.Module:
        part = nn.ParameterDict({"B": torch.zeros(site.out_dim, min(self.rank, site.in_dim))})
        part.register_buffer("A", torch.zeros(min(self.rank, site.in_dim), site.in_dim))
        return part

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        self.earlier = list(previous)

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)
        for key, seen in self.moments(backbone, data).items():
            space = shared.get(key, seen[:, :0]).to(seen)
            rows = torch.linalg.svd(seen - space @ (space.T @ seen))[0][:, : self.rank]
            self.parts[key].get_buffer("A").copy_((rows - space @ (space.T @ rows)).T / 3**0.5)

    def end(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        loss = (1 - self.threshold) * (1 - min(len(previous), self.rise - 1) / self.rise)
        for key, seen in self.moments(backbone, data).items():
            space = shared.get(key, seen[:, :0]).to(seen)
            u, s, _ = torch.linalg.svd(seen - space @ (space.T @ seen))
            lost = s.square().flip(0).cumsum(0).flip(0) / seen.square().sum()  # without each direction and later ones
            shared[key] = torch.cat([space, u[:, lost > loss]], dim=1).float()

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return {"weight": sum((p.B @ p.A for p in (*(m.parts[site.key] for m in self.earlier), part)), site.weight)}
