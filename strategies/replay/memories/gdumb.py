"""GDumb: Prabhu, Torr & Dokania 2020, A Simple Approach that Questions Our Progress in Continual Learning.

https://www.robots.ox.ac.uk/~tvg/publications/2020/gdumb.pdf. The memory is filled first, then a new model learns it. A
fair sample of each class is `class_balanced`; here both stand for themselves. Left out: the paper's cosine schedule of
the rate, its CutMix and clipping; its many passes over the memory are the file's budget.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory, Rehearsal


@register("memory", "greedy")
class Greedy(Memory):
    """A sample is kept while its class has less than its share; the largest class makes room, at random (algorithm 1).

    Shares are those at a batch's end. With ``per_class`` each class has that many places, its first samples stay, and
    the memory grows with the classes.
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
        come = -torch.arange(1, len(batch.y) + 1, device=batch.y.device, dtype=torch.float64)
        self.slots.keep_highest(batch, key=come)
        here = len(self.slots)
        key = self.slots.tensors["key"][:here]  # of the new ones below 0, of others a random number
        places = here if self.slots.grows else self.slots.capacity
        draws = torch.rand(places, generator=generator, dtype=torch.float64)[:here]
        key[key < 0] = draws.to(key.device)[key < 0]


@register("rehearsal", "gdumb")
class Dumb(Rehearsal):
    """CE over what is kept, by a model that starts anew with each task."""

    from_scratch = reads_kept = True

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        return F.cross_entropy(output, torch.cat([new.y, drawn.y]))
