"""Answers by the nearest mean of exemplars: each class by the mean direction of the features of what is kept of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.replay.slots import Slots
from forgetlab.toolbox.teacher import features
from forgetlab.training.competing_classes import competes, only, widened

AT_ONCE = 512  # samples in a forward pass


def directions(model: nn.Module, x: Tensor) -> Tensor:
    """Features of length 1. (B, ...) -> (B, d)"""
    return F.normalize(features(model, x))


@torch.no_grad()
def mean_directions(model: nn.Module, slots: Slots) -> Tensor:
    """The mean direction of each class, of length 1 again, or 0 where nothing is kept of the class. -> (C, d)"""
    if not len(slots):
        return torch.empty(0)
    y = slots.tensors["y"][: len(slots)]
    parts = torch.arange(len(slots), device=y.device).split(AT_ONCE)
    phi = torch.cat([directions(model, slots.read(part).x) for part in parts])
    return F.normalize(phi.new_zeros(int(y.max()) + 1, phi.shape[1]).index_add(0, y, phi))


def nearest(model: nn.Module, x: Tensor, means: Tensor, output: Tensor) -> Tensor:
    """The cosine to each mean, the highest where the mean is nearest; MASK where there is none, or it may not answer.

    ``output`` are the model's logits, (B, C), which tell what may answer; they answer as long as there is no mean.
    """
    if not len(means):
        return output
    cosine = only(directions(model, x) @ means.T, means.any(1))
    return only(widened(cosine, output.shape[1]), competes(output))
