"""Gaussian noise: one of the corruptions of Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
from pydantic import PositiveFloat
from torch import Tensor

from forgetlab.data import on_floats, refuse_all_but_images
from forgetlab.plugins import register
from forgetlab.seeding import generator
from forgetlab.streams import DomainChanges


@register("transform", "noise")
def noise(
    seed: int,
    n_tasks: int,
    max_deviation: PositiveFloat = 0.4,  # of the last task, where black is 0 and white is 1
) -> DomainChanges:
    """Noise of standard deviation task / (n_tasks - 1) * max_deviation added to every pixel, then cut to [0, 1]."""
    deviations = [max_deviation * task / max(n_tasks - 1, 1) for task in range(n_tasks)]
    return {f"noise {sd:g}": partial(noisy, seed=seed, task=task, deviation=sd) for task, sd in enumerate(deviations)}


def noisy(x: Tensor, seed: int, task: int, deviation: float) -> Tensor:
    """Images (N, C, H, W) with noise that the seed, the task and all the images together determine.

    Raises:
        OptionError: the inputs are no images.
    """
    refuse_all_but_images(x, "noise")
    if deviation == 0:
        return x
    images = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
    draw = generator("noise", seed, task, images)  # without them, training and test data had the same noise
    return on_floats(x, lambda part: part + deviation * torch.randn(part.shape, generator=draw, dtype=part.dtype))
