"""QLoRA: Dettmers et al. 2023, Efficient Finetuning of Quantized LLMs, https://arxiv.org/abs/2305.14314.

The quantised base is the strategy's: it is kept once for all tasks, and made dense in each pass. Factors and sums have
full precision, where the authors use bfloat16; dropout and paging are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation import (
    Batch,
    Isolation,
    Layers,
    LinearRole,
    Shared,
    Site,
    dequantised,
    quantised,
    quantised_linear,
)
from forgetlab.plugins import register


@register("isolation", "qlora")
class QLoRA(Isolation):
    """h = W x + (alpha / r) B A x, where W is what NF4 (or 8 bits by row) keeps of W0."""

    identity_at_birth = False

    def __init__(
        self,
        bits: Literal[4, 8] = 4,
        rank: PositiveInt = 64,
        alpha: PositiveFloat = 16.0,
        sites: tuple[LinearRole, ...] = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"),
        layers: Layers = None,
    ) -> None:
        super().__init__(sites, layers)
        self.bits, self.rank, self.scale, self.base = bits, rank, alpha / rank, dict[str, Tensor]()

    def make(self, site: Site) -> nn.Module:
        a = nn.init.kaiming_uniform_(torch.empty(self.rank, site.in_dim), a=math.sqrt(5))
        return nn.ParameterDict({"A": a, "B": torch.zeros(site.out_dim, self.rank)})

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        self.base = shared

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        self.base = shared
        for site in self.sites if not previous else ():
            shared |= {f"{site.key}.{name}": t for name, t in quantised(site.weight, self.bits).items()}

    def base_bytes(self) -> int:  # of the sites' weights
        return sum(t.nbytes for site in self.sites for t in self._kept(site).values())

    def _kept(self, site: Site) -> Mapping[str, Tensor]:
        keys = {name: f"{site.key}.{name}" for name in ("codes", "scales", "sizes", "mean")}
        return {name: self.base[key] for name, key in keys.items() if key in self.base}

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        frozen = quantised_linear(x, self._kept(site), (site.out_dim, site.in_dim), site.bias)
        return frozen + self.scale * F.linear(F.linear(x, part.A), part.B)

    def changed_weights(self) -> dict[str, Tensor]:
        """W - W0 + (alpha / r) B A: what quantising took is a change of the backbone too."""
        found: dict[str, Tensor] = {}
        for site in self.sites if self.base else ():
            part: Any = self.parts[site.key]
            kept = dequantised(self._kept(site), (site.out_dim, site.in_dim))
            found[f"{site.key}.weight"] = (kept - site.weight + self.scale * part.B @ part.A).detach()
        return found
