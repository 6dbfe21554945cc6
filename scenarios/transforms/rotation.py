"""Rotation: Lopez-Paz & Ranzato 2017, https://arxiv.org/abs/1706.08840, who draw the angles.

Here they are evenly spaced from 0, so that the distance between tasks is known.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from forgetlab.plugins import OptionError, register
from forgetlab.streams import DomainChanges

ROWS = 1_000  # at once


@register("transform", "rotation")
def rotation(
    seed: int,
    n_tasks: int,
    max_angle: PositiveFloat = 180.0,  # degrees, of the last task
) -> DomainChanges:
    """Images turned by task / (n_tasks - 1) * max_angle degrees."""
    angles = [max_angle * task / max(n_tasks - 1, 1) for task in range(n_tasks)]
    return {f"{angle:g} degrees": partial(rotated, degrees=angle) for angle in angles}


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Images (N, C, H, W) turned about the middle, counter-clockwise, bilinear, zeros outside.

    Raises:
        OptionError: the inputs are no images.
    """
    if x.ndim != 4 or (x.dtype != torch.uint8 and not x.is_floating_point()):
        given = f"{x.dtype} {tuple(x.shape)}"
        raise OptionError(f"rotation is for images (N, C, H, W) of bytes or floats, not for {given}", "transform")
    return torch.cat([_turned(part, degrees) for part in x.split(ROWS)]) if degrees and len(x) else x


def _turned(x: Tensor, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    wide = x.shape[3] / x.shape[2]  # the grid goes from -1 to 1 on both sides, whatever their lengths
    pixels = x.float() if x.dtype == torch.uint8 else x
    matrix = torch.tensor([[c, -s / wide, 0.0], [s * wide, c, 0.0]], dtype=pixels.dtype)
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    turned = F.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else turned
