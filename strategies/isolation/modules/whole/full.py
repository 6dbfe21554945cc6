"""Full fine-tuning, of a copy of the whole backbone for each task: nothing is forgotten, and a model per task stored.

With ``start: previous`` a task begins from the last one's weights, as merging methods want it that take the models of
one sequence: MagMax (https://arxiv.org/abs/2407.06322), or WiSE-FT (https://arxiv.org/abs/2109.01903) after several
tasks. Its changes still count from the pretrained weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from forgetlab.batch import Batch
from forgetlab.isolation import Isolation, Shared, Site, own_layers, own_tensors
from forgetlab.plugins import register


@register("isolation", "full")
class Full(Isolation):
    """theta_t in the place of theta_0: every parameter and every buffer of the backbone is the task's own."""

    owns_layers: ClassVar[bool] = True

    def __init__(self, start: Literal["pretrained", "previous"] = "pretrained") -> None:
        super().__init__(("whole",))
        self.start = start

    def make(self, site: Site) -> nn.Module:
        return own_layers(site)

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return own_tensors(part)

    @torch.no_grad()
    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        if self.start == "previous" and previous:
            theirs = previous[-1].state_dict()
            for name, mine in self.state_dict().items():
                mine.copy_(theirs[name])  # in place: the optimizer holds them already
