"""Images as tensors (N, C, H, W), of bytes or of floats in [0, 1], for the transforms that change them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forgetlab.data.datasets import as_input
from forgetlab.plugins.options import OptionError

ROWS = 1_000  # at once


def refuse_all_but_images(x: Tensor, what: str) -> None:
    """
    Raises:
        OptionError: the inputs are no images.
    """
    fits = x.dtype == torch.uint8 or (x.is_floating_point() and not ((x < 0) | (x > 1)).any())
    if x.ndim != 4 or not fits:
        given = f"{x.dtype} {tuple(x.shape)}"
        raise OptionError(f"{what} is for images (N, C, H, W), bytes or floats in [0, 1], not for {given}", "transform")


def on_floats(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The change made to images as floats in [0, 1], some at a time; bytes come back as bytes."""
    changed = torch.cat([change(as_input(part)).clamp(0, 1) for part in x.split(ROWS)])
    return changed.mul_(255).round_().to(torch.uint8) if x.dtype == torch.uint8 else changed
