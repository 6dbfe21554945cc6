"""LST: Sung et al. 2022, Ladder Side-Tuning, https://arxiv.org/abs/2206.06522.

Side blocks normalise first, see all real tokens, and start at random; theirs start as pruned blocks of the backbone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

from forgetlab.isolation import Isolation, Layers, OptionError, Site
from forgetlab.plugins import register


@register("isolation", "ladder")
class Ladder(Isolation):
    """h_i = B_i(g_i h_(i-1) + (1 - g_i) D_i b_i), g_i = sigmoid(a_i / T), h_0 = D_0 b_0; U h_L replaces b_L."""

    identity_at_birth = False

    def __init__(self, reduction: PositiveInt = 8, temperature: PositiveFloat = 0.1, layers: Layers = None) -> None:
        super().__init__(("side",))
        self.reduction, self.temperature, self.chosen = reduction, temperature, layers

    def make(self, site: Site) -> nn.Module:
        d, width, n = site.in_dim, max(1, site.in_dim // self.reduction), site.layers
        self.rungs = sorted({layer % n for layer in self.chosen or range(n) if -n <= layer < n})
        if len(self.rungs) != len(range(n) if self.chosen is None else self.chosen):
            raise OptionError(f"the backbone has the layers 0 to {n - 1}, or -1 for the last; name each once", "layers")
        part, heads = nn.Module(), math.gcd(site.heads, width)
        part.down = nn.ModuleList(nn.Linear(d, width, bias=False) for _ in (None, *self.rungs))
        part.blocks = nn.ModuleList(SideBlock(width, heads) for _ in self.rungs)
        part.gates, part.up = nn.Parameter(torch.zeros(len(self.rungs))), nn.Linear(width, d, bias=False)
        return part

    def side(self, taps: Any, real: Tensor | None) -> Tensor:
        part: Any = self.parts[self.sites[0].key]
        mask = None if real is None else real[:, None, None] | torch.eye(real.shape[1], device=real.device).bool()
        h, gates = part.down[0](taps[0]), torch.sigmoid(part.gates / self.temperature)
        for layer, g, down, block in zip(self.rungs, gates, part.down[1:], part.blocks, strict=True):
            h = block(g * h + (1 - g) * down(taps[layer + 1]), mask)
        return part.up(h)


class SideBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.first(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return h + self.feed_forward(self.second(h))
