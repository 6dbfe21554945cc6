"""IA3: Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning Is Better and Cheaper than In-Context Learning,
https://arxiv.org/abs/2205.05638.

At attention sites what leaves is scaled, at feed-forward sites what enters: l_ff stands between the non-linearity and
the second layer. Either is a scaled weight, so it merges. On an mlp ``sites: [mlp.in]`` scales each layer's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, LinearRole, Site
from forgetlab.plugins import register


@register("isolation", "ia3")
class IA3(Isolation):
    """softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V) and W2 (l_ff * f(W1 x)), entry by entry."""

    def __init__(self, sites: tuple[LinearRole, ...] = ("attn.k", "attn.v", "mlp.out"), layers: Layers = None) -> None:
        super().__init__(sites, layers)

    def make(self, site: Site) -> nn.Module:
        size = site.in_dim if of_input(site) else site.out_dim
        return nn.ParameterDict({"scale": nn.Parameter(torch.ones(size))})

    def before(self, part: Any, site: Site, x: Tensor) -> Tensor:
        return x * part["scale"] if of_input(site) else x

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y if of_input(site) else y * part["scale"]

    def delta(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        change = part["scale"] - 1
        if of_input(site):
            return {"weight": site.weight * change}
        whole = {"weight": site.weight * change[:, None]}
        return whole if site.bias is None else whole | {"bias": site.bias * change}


def of_input(site: Site) -> bool:
    return site.role.startswith("mlp")
