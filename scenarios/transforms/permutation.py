"""Permutation: Goodfellow et al. 2013, https://arxiv.org/abs/1312.6211."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from forgetlab.plugins import OptionError, register
from forgetlab.seeding import generator
from forgetlab.streams import DomainChanges


@register("transform", "permutation")
def permutation(seed: int, n_tasks: int) -> DomainChanges:
    """The positions of every sample shuffled in a way of the task's own, which the seed draws; the first stays."""
    return {f"permutation {task}": partial(shuffled, seed, task) for task in range(n_tasks)}


def shuffled(seed: int, task: int, x: Tensor) -> Tensor:
    """Bytes or floats (N, ...) with their positions in the order of (seed, task).

    Raises:
        OptionError: the inputs are ids, whose places are words.
    """
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise OptionError(f"permutation is for bytes or floats, not for ids {tuple(x.shape)}", "transform")
    order = torch.randperm(x.shape[1:].numel(), generator=generator("permutation", seed, task))
    return x.flatten(1)[:, order].view_as(x) if task else x
