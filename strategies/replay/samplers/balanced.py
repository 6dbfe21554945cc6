"""Class-balanced draws: Kang et al. 2020, Decoupling Representation and Classifier for Long-Tailed Recognition.

https://arxiv.org/abs/1910.09217, equation 1 with q = 0. A class's samples come in a random order, and again only when
all of them have come.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from forgetlab.plugins import register
from forgetlab.replay import Batch, Sampler, Slots


@register("sampler", "balanced")
class Balanced(Sampler):
    """Each draw is of every kept class with the same probability 1 / C, however many samples the class has."""

    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        y = slots.tensors["y"][: len(slots)].cpu()
        shuffled = torch.randperm(len(y), generator=generator)
        by_class = shuffled[y[shuffled].argsort(stable=True)]
        counts = y.unique(return_counts=True)[1]
        drawn = torch.randint(len(counts), (min(n, len(y)),), generator=generator).sort().values
        often = torch.bincount(drawn, minlength=len(counts))
        turn = torch.arange(len(drawn)) - (often.cumsum(0) - often)[drawn]  # how many of its class came before
        place = (counts.cumsum(0) - counts)[drawn] + turn % counts[drawn]
        return by_class[place].to(new.y.device)
