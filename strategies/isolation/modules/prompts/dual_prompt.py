"""DualPrompt: Wang et al. 2022, Complementary Prompting for Rehearsal-free Continual Learning.

https://arxiv.org/abs/2204.04799. A module is one task's prompts; what the paper's keys choose at test, the router
`key_query` chooses here, or any other, each sample for itself. The general prompt learns on from task to task as in the
paper, but each task answers with the one that it ended with, so its answers stay. Lengths are of keys and of as many
values, put in front in each head; they, their start and the layers are those of the authors' code for ImageNet-R: of
the first five layers two are the general prompt's. On a smaller backbone the last one is the expert prompt's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Site
from forgetlab.plugins import register


@register("isolation", "dual_prompt")
class DualPrompt(Isolation):
    """K = [p_K; K] and V = [p_V; V]: a general prefix in the first two layers, the task's own expert prefix after."""

    identity_at_birth: ClassVar[bool] = False

    def __init__(self, general: PositiveInt = 5, expert: PositiveInt = 20, layers: Layers = None) -> None:
        super().__init__(("attn.kv",), layers)
        self.general, self.expert = general, expert

    def attach(self, backbone: nn.Module) -> None:
        super().attach(backbone)
        self.sites = self.sites[: None if self.layers else 5]
        self.parts = nn.ModuleDict({site.key: self.parts[site.key] for site in self.sites})

    def is_general(self, site: Site) -> bool:
        return site in self.sites[:-1][:2]

    def make(self, site: Site) -> nn.Module:
        length = self.general if self.is_general(site) else self.expert
        return nn.ParameterDict({"prefix": torch.rand(2, site.heads, length, site.head_dim) / 100})

    def keys_values(self, part: Any, site: Site, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = part["prefix"].unsqueeze(1).expand(-1, len(k), -1, -1, -1)
        return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)

    @torch.no_grad()
    def begin(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        for site in filter(self.is_general, self.sites if previous else ()):
            self.parts.get_parameter(f"{site.key}.prefix").copy_(previous[-1].parts[site.key]["prefix"])
