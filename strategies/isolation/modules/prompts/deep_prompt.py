"""Deep prompts: Jia et al. 2022, Visual Prompt Tuning (VPT-deep), https://arxiv.org/abs/2203.12119; for text Liu et al.
2022, P-Tuning v2, https://arxiv.org/abs/2110.07602.

As in VPT, new tokens enter each block and are gone after it. P-Tuning v2 puts keys and values in front in each layer:
that is `prefix` with `reparameterization: flat`. The start is VPT's, where the width stands for the numbers of a patch
(the same for ViT-B/16). VPT's dropout on prompts is left out; it searches the length, and 20 is P-Tuning v2's on RTE.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Site
from forgetlab.plugins import register


@register("isolation", "deep_prompt")
class DeepPrompt(Isolation):
    """[_, H_i] = L_i([P_i-1; H_i-1]): tokens of its own in front of what enters each block, dropped after it."""

    identity_at_birth: ClassVar[bool] = False

    def __init__(self, length: PositiveInt = 20, layers: Layers = None) -> None:
        super().__init__(("tokens",), layers)
        self.length = length

    def make(self, site: Site) -> nn.Module:
        bound = math.sqrt(6 / (2 * site.in_dim))
        start = torch.empty(self.length, site.in_dim).uniform_(-bound, bound)
        return nn.ParameterDict({"prompt": nn.Parameter(start)})

    def tokens(self, part: Any, site: Site, h: Tensor) -> Tensor:
        return part["prompt"]
