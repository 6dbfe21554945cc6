"""Reservoir: Vitter 1985, Random Sampling with a Reservoir, https://doi.org/10.1145/3147.3165.

As a replay memory: Chaudhry et al. 2019, On Tiny Episodic Memories, https://arxiv.org/abs/1902.10486.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory


@register("memory", "reservoir")
class Reservoir(Memory):
    """Every sample of the stream so far is kept with the same probability, capacity / seen (algorithm R)."""

    def __init__(self, capacity: PositiveInt, ratio: PositiveFloat = 1.0) -> None:
        super().__init__(capacity, ratio)
        self.seen = 0

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        capacity, n = self.slots.capacity, len(batch.y)
        count = torch.arange(self.seen, self.seen + n)
        draws = (torch.rand(n, generator=generator, dtype=torch.float64) * (count + 1)).long()
        place = torch.where(count < capacity, count, draws)
        rows = (place < capacity).nonzero().squeeze(1)
        reached = min(capacity, self.seen + n)  # places that can be filled by now
        last = torch.full((reached,), -1).scatter_reduce(0, place[rows], rows, "amax")  # later wins
        places = (last >= 0).nonzero().squeeze(1)
        device = batch.y.device
        self.slots.write(places.to(device), batch.rows(last[places].to(device)))
        self.seen += n

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors, {**values, "seen": self.seen}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().restore(tensors, values)
        self.seen = values["seen"]
