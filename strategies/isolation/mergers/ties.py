"""TIES: Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, https://arxiv.org/abs/2306.01708.

A task is trimmed over all its entries at once, as in the paper. The `ties` of Hugging Face's peft trims each matrix for
itself, and where a LoRA's A and B are merged by it, it merges the two apart; here the product B A is merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from forgetlab.isolation import Changes, Merger, by_place
from forgetlab.plugins import register


@register("merger", "ties")
class Ties(Merger):
    """Trim each task to its largest entries, elect a sign, average what has it, scale (algorithm 1)."""

    def __init__(self, density: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2, scale: PositiveFloat = 1.0) -> None:
        self.density, self.scale = density, scale

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        trimmed = [trim(one, self.density) for one in changes]
        return by_place(trimmed, lambda each: self.scale * elected_mean(each))


def trim(change: Changes, density: float) -> dict[str, Tensor]:
    """A task's largest entries by magnitude, among those of all its places; zero elsewhere."""
    if not change:
        return {}
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in change.values()])
    least = magnitudes.topk(max(1, round(density * len(magnitudes)))).values[-1]
    return {place: tensor.where(tensor.abs() >= least, 0.0) for place, tensor in change.items()}


def elected_mean(each: Tensor) -> Tensor:
    """The mean of the entries whose sign is that of the sum; 0 where the sum is. (T, ...) -> (...)"""
    agrees = (each.sign() == each.sum(0).sign()) & (each != 0)
    return each.where(agrees, 0.0).sum(0) / agrees.sum(0).clamp(min=1)
