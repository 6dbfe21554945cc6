"""Selective fine-tuning: the last blocks alone, a copy of them for each task.

Yosinski et al. 2014, How Transferable Are Features in Deep Neural Networks?, https://arxiv.org/abs/1411.1792. What
comes after the last block, such as a final layer norm, stays frozen; layer norms inside the blocks are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.isolation import Isolation, Site, own_layers, own_tensors
from forgetlab.plugins import OptionError, register


@register("isolation", "selective")
class Selective(Isolation):
    """theta_t in the place of theta_0 in the last blocks; all that lies below them is computed once for all tasks."""

    owns_layers: ClassVar[bool] = True

    def __init__(self, blocks: PositiveInt = 1) -> None:
        super().__init__(("block",), tuple(range(-blocks, 0)))
        self.blocks = blocks

    def attach(self, backbone: nn.Module) -> None:
        try:
            super().attach(backbone)
        except OptionError as error:
            raise OptionError(str(error), "blocks" if error.option == "layers" else error.option) from None

    def make(self, site: Site) -> nn.Module:
        return own_layers(site)

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return own_tensors(part)
