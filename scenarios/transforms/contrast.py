"""Contrast: one of the corruptions of Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from forgetlab.data import on_floats, refuse_all_but_images
from forgetlab.plugins import register
from forgetlab.streams import DomainChanges


@register("transform", "contrast")
def contrast(
    seed: int,
    n_tasks: int,
    min_contrast: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2,  # of the last task, where the first has 1
) -> DomainChanges:
    """Pixels drawn towards the mean of their image and channel, to a share that falls evenly to min_contrast."""
    shares = [1 - (1 - min_contrast) * task / max(n_tasks - 1, 1) for task in range(n_tasks)]
    return {f"contrast {share:g}": partial(flattened, share=share) for share in shares}


def flattened(x: Tensor, share: float) -> Tensor:
    """Images (N, C, H, W) as mean + share * (image - mean).

    Raises:
        OptionError: the inputs are no images.
    """
    refuse_all_but_images(x, "contrast")
    if share == 1:
        return x
    return on_floats(x, lambda part: torch.lerp(part.mean((2, 3), keepdim=True), part, share))
