"""Pfeiffer adapter: Pfeiffer et al. 2021, AdapterFusion, https://arxiv.org/abs/2005.00247.

One per layer, on what leaves the feed-forward part. The authors' reads the stream after the layer norm that follows
there in BERT; here it reads what it is added to, so that it means the same where the norm comes first. The start is
their library's: normal weights with a deviation of 0.02, biases 0. The layer norms stay frozen.
"""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, LinearRole, Site
from forgetlab.plugins import register


@register("isolation", "pfeiffer")
class Pfeiffer(Isolation):
    """h <- h + W_up ReLU(W_down h + b1) + b2 after the feed-forward part, of width d / reduction inside, at least 4."""

    identity_at_birth = False  # nearly: the weights start small, not at 0

    def __init__(
        self, reduction: PositiveInt = 16, sites: tuple[LinearRole, ...] = ("mlp.out",), layers: Layers = None
    ) -> None:
        super().__init__(sites, layers)
        self.reduction = reduction

    def make(self, site: Site) -> nn.Module:
        inner = max(4, site.out_dim // self.reduction)
        part = nn.Sequential(nn.Linear(site.out_dim, inner), nn.ReLU(), nn.Linear(inner, site.out_dim))
        for tensor in part.parameters():
            nn.init.normal_(tensor, std=0.02) if tensor.dim() > 1 else nn.init.zeros_(tensor)
        return part

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y + part(y)
