"""Prefix-Tuning: Li & Liang 2021, Optimizing Continuous Prompts for Generation, https://arxiv.org/abs/2101.00190.

Defaults and start are those of the authors' GPT-2 code. In training the prefix comes out of an MLP (section 4.3),
whose first layer all layers share; afterwards only the prefix is kept. Real tokens keep their positions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Site
from forgetlab.plugins import register


@register("isolation", "prefix")
class Prefix(Isolation):
    """K = [P_K; K] and V = [P_V; V] in every layer (equation 3; 5 in https://arxiv.org/abs/2110.04366)."""

    identity_at_birth: ClassVar[bool] = False  # a prefix of zeros is no identity either: it draws attention

    def __init__(
        self,
        length: PositiveInt = 10,
        reparameterization: Literal["mlp", "flat"] = "mlp",
        hidden: PositiveInt = 512,
        layers: Layers = None,
    ) -> None:
        super().__init__(("attn.kv",), layers)
        self.length, self.reparameterization, self.hidden = length, reparameterization, hidden
        self.trunk: nn.Module | None = None  # of the MLP: what all layers share

    def make(self, site: Site) -> nn.Module:
        if self.reparameterization == "flat":
            return nn.ParameterDict({"prefix": torch.randn(2, site.heads, self.length, site.head_dim)})
        if self.trunk is None:
            embedding, inner = nn.Embedding(self.length, site.in_dim), nn.Linear(site.in_dim, self.hidden)
            self.trunk = nn.Sequential(embedding, inner, nn.Tanh())
        return nn.Linear(self.hidden, 2 * site.out_dim)

    def prefix(self, part: Any, site: Site) -> Tensor:
        """P_K and P_V. (2, heads, length, head_dim)"""
        if self.trunk is None:
            return part["prefix"]
        rows = part(self.trunk(torch.arange(self.length, device=part.weight.device)))
        return rows.view(self.length, 2, site.heads, site.head_dim).permute(1, 2, 0, 3)

    def keys_values(self, part: Any, site: Site, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.prefix(part, site).unsqueeze(1).expand(-1, len(k), -1, -1, -1)
        return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)

    def materialise(self) -> None:
        prefixes = {site.key: self.prefix(self.parts[site.key], site).detach().contiguous() for site in self.sites}
        self.parts = nn.ModuleDict({key: nn.ParameterDict({"prefix": rows}) for key, rows in prefixes.items()})
        self.trunk = None
