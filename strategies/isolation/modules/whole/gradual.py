"""Gradual unfreezing: Howard & Ruder 2018, Universal Language Model Fine-tuning for Text Classification (ULMFiT),
https://arxiv.org/abs/1801.06146.

Of its three devices this is one: learning rates that fall from layer to layer and the slanted triangular schedule are
left out. The authors thaw a layer per epoch and train all of them in the epochs left; here the shares are equal.
A block that is still frozen keeps BatchNorm's statistics as they are.
Embeddings and what comes after the last block stay frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from forgetlab.isolation import Isolation, Site, own_copy, own_statistics, own_weights
from forgetlab.plugins import register

ROUNDING = 1e-9  # 1/49 of 49 steps is a little less than one


@register("isolation", "gradual")
class Gradual(Isolation):
    """theta_t for theta_0 in all n blocks: in share k of n + 1 of the steps the head and the top k train."""

    def __init__(self) -> None:
        super().__init__(("block",))
        self.thawed = 0  # blocks, from the top

    def make(self, site: Site) -> nn.Module:
        return own_copy(site)

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return own_weights(part)

    def statistics(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return own_statistics(part)

    def step(self, done: float) -> None:
        n = len(self.sites)
        self.thawed = int(done * (n + 1) + ROUNDING)
        for site in self.sites:
            self.parts[site.key].requires_grad_(site.layer >= n - self.thawed)

    def learns_at(self, site: Site) -> bool:
        return self.training and site.layer >= len(self.sites) - self.thawed
