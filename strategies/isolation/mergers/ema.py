"""Moving average: Marouf et al. 2024, Weighted Ensemble Models Are Strong Continual Learners (CoMA),
https://arxiv.org/abs/2312.08977.

There each task is trained from the average so far. Here the average is taken of changes that were found without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Annotated

from pydantic import Field
from torch import Tensor

from forgetlab.isolation import Changes, Merger, by_place
from forgetlab.plugins import register


@register("merger", "ema")
class MovingAverage(Merger):
    """e_t = (1 - newest) e_(t-1) + newest * tau_t, from e_1 = tau_1 on."""

    def __init__(self, newest: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5) -> None:
        self.newest = newest

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return by_place(changes, lambda each: reduce(lambda old, new: old.lerp(new, self.newest), each.unbind()))
