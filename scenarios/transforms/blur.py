"""Gaussian blur: one of the corruptions of Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261."""

from __future__ import annotations

import math
from functools import partial

import torch
from pydantic import PositiveFloat
from torch import Tensor

from forgetlab.data import on_floats, refuse_all_but_images
from forgetlab.plugins import register
from forgetlab.streams import DomainChanges


@register("transform", "blur")
def blur(
    seed: int,
    n_tasks: int,
    max_sigma: PositiveFloat = 2.0,  # pixels, of the last task
) -> DomainChanges:
    """Images under a Gaussian kernel of standard deviation task / (n_tasks - 1) * max_sigma; edges are continued."""
    sigmas = [max_sigma * task / max(n_tasks - 1, 1) for task in range(n_tasks)]
    return {f"blur {sigma:g}": partial(blurred, sigma=sigma) for sigma in sigmas}


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W), blurred. Raises an `OptionError` where the inputs are none."""
    refuse_all_but_images(x, "blur")
    if sigma == 0:
        return x
    rows, columns = (_averaging(size, sigma) for size in x.shape[2:])
    return on_floats(x, lambda part: rows.to(part.dtype) @ part @ columns.to(part.dtype).T)


def _averaging(size: int, sigma: float) -> Tensor:
    """(size, size): the weights with which old positions make up each new one; outside, the edge counts."""
    reach = math.ceil(4 * sigma)  # beyond it lies less than 1 in 10,000 of the weight
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.softmax(-offsets.double().square() / (2 * sigma**2), dim=0)
    sources = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    return torch.zeros(size, size, dtype=weights.dtype).scatter_add_(1, sources, weights.expand(size, -1))
