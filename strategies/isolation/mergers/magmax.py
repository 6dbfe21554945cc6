"""MagMax: Marczak et al. 2024, Leveraging Model Merging for Seamless Continual Learning,
https://arxiv.org/abs/2407.06322.

Meant for tasks that were trained one after another, each from where the last ended: their changes, all from the first
weights, then agree more. The paper scales the result by a factor found on validation data.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveFloat
from torch import Tensor

from forgetlab.isolation import Changes, Merger, by_place
from forgetlab.plugins import register


@register("merger", "magmax")
class MagMax(Merger):
    """scale * tau_t for the t of the largest |tau_t|, each entry for itself; of equals the earliest."""

    def __init__(self, scale: PositiveFloat = 1.0) -> None:
        self.scale = scale

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return by_place(changes, lambda each: self.scale * largest(each))


def largest(each: Tensor) -> Tensor:
    """(T, ...) -> (...)"""
    return each.gather(0, each.abs().argmax(0, keepdim=True)).squeeze(0)
