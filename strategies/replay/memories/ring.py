"""Ring buffers: Chaudhry et al. 2019, On Tiny Episodic Memories, https://arxiv.org/abs/1902.10486.

The paper divides the capacity by the number of all classes; here it is shared among those seen so far: nothing lies
idle, and how many classes will come need not be known. Where there are more classes than places, the first have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory


@register("memory", "ring")
class Ring(Memory):
    """The last samples of each class (first in, first out), in equal shares of about capacity / classes.

    With ``per_class`` each class has that many places, as the paper's ring has, and the memory grows with them.
    """

    def __init__(
        self,
        capacity: PositiveInt | None = None,
        ratio: PositiveFloat = 1.0,
        per_class: PositiveInt | None = None,
    ) -> None:
        super().__init__(capacity or 1, ratio)
        self.take_size(capacity, per_class=per_class)
        self.seen = 0

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        n, device = len(batch.y), batch.y.device
        self.slots.keep_highest(batch, key=torch.arange(self.seen, self.seen + n, device=device))
        self.seen += n

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors, {**values, "seen": self.seen}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().restore(tensors, values)
        self.seen = values["seen"]
