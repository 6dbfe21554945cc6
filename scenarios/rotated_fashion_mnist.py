"""Rotated Fashion-MNIST: the same clothes in every task, turned by an angle of the task's own.

Lopez-Paz & Ranzato 2017, https://arxiv.org/abs/1706.08840, for MNIST, who draw the angles; here they are evenly spaced
from 0, so that the distance between tasks is known.
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.scenario import Scenario, Setting, dataset
from forgetlab.streams import domains


@register("scenario", "rotated_fashion_mnist")
def rotated_fashion_mnist(
    seed: int,
    setting: Setting = "domain-incremental",
    n_tasks: PositiveInt = 5,
    max_angle: PositiveFloat = 180.0,  # degrees, of the last task
) -> Scenario:
    """All ten kinds of clothes, turned by task / (n_tasks - 1) * max_angle degrees."""
    angles = [max_angle * i / max(n_tasks - 1, 1) for i in range(n_tasks)]
    change = {f"{angle:g} degrees": lambda x, angle=angle: rotated(x, angle) for angle in angles}
    return domains(dataset("fashion_mnist"), change, setting)


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Bytes (N, 1, H, W) turned about the middle, counter-clockwise, bilinear, zeros outside."""
    if degrees == 0:
        return x
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.tensor([[c, -s, 0.0], [s, c, 0.0]])
    parts = []
    for part in x.split(10_000):
        grid = F.affine_grid(matrix.expand(len(part), 2, 3), list(part.shape), align_corners=False)
        turned = F.grid_sample(part.float(), grid, padding_mode="zeros", align_corners=False)
        parts.append(turned.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)
