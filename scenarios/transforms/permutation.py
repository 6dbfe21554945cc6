"""Permutation: Goodfellow et al. 2013, https://arxiv.org/abs/1312.6211."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetlab.plugins import register
from forgetlab.scenario import Changes
from forgetlab.seeding import generator


@register("transform", "permutation")
def permutation(seed: int, n_tasks: int) -> Changes:
    """The positions of every sample shuffled in a way of the task's own, which the seed draws; the first stays."""

    def shuffled(task: int, x: Tensor) -> Tensor:
        order = torch.randperm(x[0].numel(), generator=generator("permutation", seed, task))
        return x.flatten(1)[:, order].view_as(x) if task else x

    return {f"permutation {i}": lambda x, i=i: shuffled(i, x) for i in range(n_tasks)}
