"""Adapter: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, https://arxiv.org/abs/1902.00751.

Two per layer, on what leaves the attention and the feed-forward part, before it is added to the stream. The authors'
BERT normalises after that sum; the own vit normalises before each part (pre-norm). The start and the tanh form of
GELU are those of their code. They also train each task's layer norms; here the whole backbone stays frozen.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import Isolation, LinearRole, Site
from forgetlab.plugins import register


class Bottleneck(nn.Module):
    """W_up f(W_down h + b1) + b2, at the start nearly 0: normal weights cut at two deviations of 1e-3, biases 0."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=1e-3, a=-2e-3, b=2e-3)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        """(B, ..., d) -> (B, ..., d)"""
        return self.up(F.gelu(self.down(h), approximate="tanh"))


@register("isolation", "adapter")
class Adapter(Isolation):
    """a(h) = h + W_up f(W_down h + b1) + b2 (section 2.1; equation 4 of https://arxiv.org/abs/2110.04366)."""

    identity_at_birth: ClassVar[bool] = False  # nearly: the weights start small, not at 0

    def __init__(self, bottleneck: PositiveInt = 64, sites: tuple[LinearRole, ...] = ("attn.out", "mlp.out")) -> None:
        super().__init__(sites)
        self.bottleneck = bottleneck

    def make(self, site: Site) -> nn.Module:
        return Bottleneck(site.out_dim, self.bottleneck)

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y + part(y)
