"""Colour: the hue tells the domain, as in Colored MNIST of Arjovsky et al. 2019, https://arxiv.org/abs/1907.02893."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from forgetlab.data import on_floats, refuse_all_but_images
from forgetlab.plugins import OptionError, register
from forgetlab.streams import DomainChanges


@register("transform", "colour")
def colour(seed: int, n_tasks: int) -> DomainChanges:
    """Hues turned by task / n_tasks of the circle; grey images, which have none, are tinted with that hue.

    Every task is RGB, the first as well, whose colours stay as they are.
    """
    turns = [task / n_tasks for task in range(n_tasks)]
    return {f"hue {360 * turn:g} degrees" if turn else "own colours": partial(turned, turn=turn) for turn in turns}


def turned(x: Tensor, turn: float) -> Tensor:
    """Images (N, 1 or 3, H, W) with their hues turned by a part of the circle: (N, 3, H, W).

    Raises:
        OptionError: the inputs are no images of one or three channels.
    """
    refuse_all_but_images(x, "colour")
    if x.shape[1] not in (1, 3):
        raise OptionError(f"colour is for grey or RGB images, not for {x.shape[1]} channels", "transform")
    x = x.expand(-1, 3, -1, -1).contiguous()
    if turn == 0:
        return x
    return on_floats(x, partial(_turned, turn=turn))


def _turned(rgb: Tensor, turn: float) -> Tensor:
    """Through hue, saturation and value: Smith 1978, https://doi.org/10.1145/965139.807361."""
    (red, green, blue), value, spread = rgb.unbind(1), rgb.amax(1), rgb.amax(1) - rgb.amin(1)
    grey = spread.flatten(1).amax(1) == 0  # the whole image
    safe = spread.where(spread > 0, 1)
    sixth = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sixth = torch.where(value == red, (green - blue) / safe, sixth) + 6 * turn
    span = torch.where(grey[:, None, None], value, spread)
    away = ((sixth + n) % 6 for n in (5, 3, 1))
    return torch.stack([value - span * torch.minimum(k, 4 - k).clamp(0, 1) for k in away], dim=1)
