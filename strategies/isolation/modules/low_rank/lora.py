"""LoRA: Hu et al. 2022, Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685.

Start "kaiming" is from their code, "gaussian" the paper's; rslora: Kalajdzievski 2023, https://arxiv.org/abs/2312.03732;
pissa: Meng et al. 2024, https://arxiv.org/abs/2404.02948, where W0 stays whole and the start B0 A0 is taken off again.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import Isolation, Layers, LinearRole, OptionError, Site
from forgetlab.plugins import register


@register("isolation", "lora")
class LoRA(Isolation):
    """h = W0 x + s B A x (equation 3), s = alpha / r or alpha / sqrt(r): a low-rank change beside each weight."""

    def __init__(
        self,
        rank: PositiveInt = 8,
        alpha: PositiveFloat | None = None,  # None: equal to the rank
        scaling: Literal["standard", "rslora"] = "standard",
        start: Literal["kaiming", "gaussian", "pissa"] = "kaiming",
        dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,  # of what enters A
        sites: tuple[LinearRole, ...] = ("attn.q", "attn.v"),
        layers: Layers = None,
    ) -> None:
        super().__init__(sites, layers)
        self.rank, self.start, self.dropout, self.draws = rank, start, dropout, dropout > 0
        self.scale = (rank if alpha is None else alpha) / (rank if scaling == "standard" else math.sqrt(rank))

    def make(self, site: Site) -> nn.Module:
        part, a, b = nn.Module(), torch.empty(self.rank, site.in_dim), torch.zeros(site.out_dim, self.rank)
        if self.start == "pissa":
            if self.rank > min(site.weight.shape):
                raise OptionError(f"there are {min(site.weight.shape)} singular vectors to start from", "rank")
            u, s, v = torch.linalg.svd(site.weight, full_matrices=False)
            root = (s[: self.rank] / self.scale).sqrt()
            a, b = root[:, None] * v[: self.rank], u[:, : self.rank] * root
            part.register_buffer("A0", a.clone(), persistent=False)
            part.register_buffer("B0", b.clone(), persistent=False)
        else:
            kaiming = self.start == "kaiming"
            nn.init.kaiming_uniform_(a, a=math.sqrt(5)) if kaiming else nn.init.normal_(a, std=1 / self.rank)
        part.A, part.B = nn.Parameter(a), nn.Parameter(b)
        return part

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        change = F.linear(F.linear(F.dropout(x, self.dropout, self.training), part.A), part.B)
        return y + self.scale * (change - F.linear(F.linear(x, part.A0), part.B0) if self.start == "pissa" else change)

    def delta(self, part: Any, site: Site) -> Tensor:
        return self.scale * (part.B @ part.A - (part.B0 @ part.A0 if self.start == "pissa" else 0))
