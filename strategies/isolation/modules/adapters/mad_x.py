"""MAD-X: Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00052.

Their language adapter learns from text beforehand; here the shared one learns with the first task. The invertible one
acts on embeddings alone: its inverse belongs to a language model's output. All read h, theirs the layer norm after it.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt as Size
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Shared, Site
from forgetlab.plugins import register


@register("isolation", "mad_x")
class MADX(Isolation):
    """h <- h + U ReLU(D l), l = h + U_0 ReLU(D_0 h): U and D are a task's, U_0 and D_0 the first task's for all."""

    identity_at_birth = False

    def __init__(
        self, reduction: Size = 16, shared_reduction: Size = 2, invertible: bool = True, layers: Layers = None
    ) -> None:
        super().__init__(("mlp.out", "embed") if invertible else ("mlp.out",), layers)
        self.own, self.common = reduction, shared_reduction

    def make(self, site: Site) -> nn.Module:
        d, half, part = site.out_dim, site.out_dim // 2, nn.ModuleDict()
        halves = {"shared_f": (d - half, half), "shared_g": (half, d - half)}
        for name, (i, o) in (halves if site.role == "embed" else {"own": (d, d), "shared": (d, d)}).items():
            inner = max(4, i // (self.own if name == "own" else self.common))
            part[name] = nn.Sequential(nn.Linear(i, inner), nn.ReLU(), nn.Linear(inner, o))
        for tensor in part.parameters():
            nn.init.normal_(tensor, std=0.02) if tensor.dim() > 1 else nn.init.zeros_(tensor)
        return part

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        if site.role != "embed":
            return y + part["own"](y + part["shared"](y))
        left, right = y.tensor_split([y.shape[-1] // 2], dim=-1)  # NICE: o1 = e1 + F(e2), o2 = e2 + G(o1)
        left = left + part["shared_f"](right)
        return torch.cat([left, right + part["shared_g"](left)], dim=-1)

    def recall(self, previous: Any, shared: Shared) -> None:
        for path, owner in self.parts.named_modules():
            for leaf in [leaf for leaf in owner._parameters if f"{path}.{leaf}" in shared]:
                delattr(owner, leaf)
                owner.register_buffer(leaf, shared[f"{path}.{leaf}"], persistent=False)

    def begin(self, data: Any, previous: Any, shared: Shared, backbone: nn.Module) -> None:
        self.recall(previous, shared)

    def end(self, data: Any, previous: Any, shared: Shared, backbone: nn.Module) -> None:
        shared.update({n: p.detach() for n, p in self.parts.named_parameters() if ".shared" in n})
        self.recall(previous, shared)
