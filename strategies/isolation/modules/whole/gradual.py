"""Gradual unfreezing: Howard & Ruder 2018, Universal Language Model Fine-tuning for Text Classification (ULMFiT),
https://arxiv.org/abs/1801.06146.

Of its three devices this is one: learning rates that fall from layer to layer and the slanted triangular schedule are
left out. The authors thaw a layer per epoch and train all of them in the epochs left; here the shares are equal.
Embeddings and what comes after the last block stay frozen. Statistics of blocks that are not thawed yet move with those
that are, as they do where a layer's weights alone are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from forgetlab.isolation import Isolation, Site, own_layers, own_tensors
from forgetlab.plugins import register

ROUNDING = 1e-9  # 1/49 of 49 steps is a little less than one


@register("isolation", "gradual")
class Gradual(Isolation):
    """theta_t for theta_0 in all n blocks: in share k of n + 1 of the steps the head and the top k train."""

    owns_layers: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(("block",))

    def make(self, site: Site) -> nn.Module:
        return own_layers(site)

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return own_tensors(part)

    def step(self, done: float) -> None:
        n = len(self.sites)
        thawed = int(done * (n + 1) + ROUNDING)
        for site in self.sites:
            self.parts[site.key].requires_grad_(site.layer >= n - thawed)
