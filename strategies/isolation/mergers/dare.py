"""DARE: Yu et al. 2024, Language Models are Super Mario (drop and rescale), https://arxiv.org/abs/2311.03099.

It thins out each task's change before another method merges them. Which entries are dropped follows from the task's
number and the place alone, in every run: so a task's share stays the same when later tasks come, and no seed is needed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from forgetlab.isolation import Changes, Merger
from forgetlab.plugins import Named, Spec, register, registry


@register("merger", "dare")
class Dare(Merger):
    """Set entries to 0 with probability ``drop``, divide the rest by 1 - drop (section 3.2), then merge."""

    def __init__(
        self,
        drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9,
        then: Annotated[Spec, Named("merger")] = "average",
    ) -> None:
        options = {"name": then} if isinstance(then, str) else dict(then)
        self.drop = drop
        self.then: Merger = registry.build("merger", options.pop("name"), options)

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return self.then.merge([self.thinned(task, one) for task, one in enumerate(changes)])

    def thinned(self, task: int, change: Changes) -> dict[str, Tensor]:
        kept = {place: drawn(f"{task} {place}", tensor) >= self.drop for place, tensor in change.items()}
        return {place: tensor.where(kept[place], 0.0) / (1 - self.drop) for place, tensor in change.items()}


def drawn(name: str, like: Tensor) -> Tensor:
    """Numbers from 0 to 1 that follow from the name, on any device."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(like.shape, generator=draw).to(like.device)
