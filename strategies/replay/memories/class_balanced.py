"""CBRS: Chrysakis & Moens 2020, Online Continual Learning from Imbalanced Data, PMLR 119.

https://proceedings.mlr.press/v119/chrysakis20a.html. Drawn with random keys instead of random replacements, which
gives the same memory: the m highest of n independent keys are every set of m with equal probability. Unlike GDumb's
greedy sampler, which keeps the first samples of a class, the memory is a fair sample of each class.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory


@register("memory", "class_balanced")
class ClassBalanced(Memory):
    """A reservoir for each class: of a class's n samples each is kept with m / n, in equal shares m of the capacity.

    With ``per_class`` m is that number, and the memory grows with the classes.
    """

    def __init__(
        self,
        capacity: PositiveInt | None = None,
        ratio: PositiveFloat = 1.0,
        per_class: PositiveInt | None = None,
    ) -> None:
        super().__init__(capacity or 1, ratio)
        self.take_size(capacity, per_class=per_class)

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        key = torch.rand(len(batch.y), generator=generator, dtype=torch.float64)
        self.slots.keep_highest(batch, key=key.to(batch.y.device))
