"""BitFit: Ben Zaken, Goldberg & Ravfogel 2022, Simple Parameter-Efficient Fine-Tuning for Transformer-Based Masked
Language Models, https://arxiv.org/abs/2106.10199.

All biases of the blocks, those of layer norms too, as in the authors' code; what lies outside the blocks, such as a
layer norm of the embeddings, stays frozen. The gradient of the keys' biases is 0 but for rounding: the softmax does
not see them. Adam moves them all the same, as it does in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from forgetlab.isolation import Isolation, Layers, Site
from forgetlab.plugins import register


@register("isolation", "bitfit")
class BitFit(Isolation):
    """h = W0 x + b_t: every bias of the backbone's blocks is the task's own, every weight stays."""

    def __init__(self, layers: Layers = None) -> None:
        super().__init__(("block",), layers)

    def make(self, site: Site) -> nn.Module:
        names = [name for name in site.tensors if name.rpartition(".")[2] == "bias"]
        return nn.ParameterDict({name.replace(".", "/"): site.tensors[name].clone() for name in names})  # no dots there

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return {name.replace("/", "."): tensor for name, tensor in part.items()}
