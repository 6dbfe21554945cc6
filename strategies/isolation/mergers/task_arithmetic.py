"""Task arithmetic: Ilharco et al. 2023, Editing Models with Task Arithmetic (addition), https://arxiv.org/abs/2212.04089.

The paper finds the scale on validation data; its best ones for several tasks lie from 0.3 to 0.5. At 1 / T the sum is
the average.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveFloat
from torch import Tensor

from forgetlab.isolation import Changes, Merger, by_place
from forgetlab.plugins import register


@register("merger", "task_arithmetic")
class TaskArithmetic(Merger):
    """scale * sum over t of tau_t, the task vectors (section 4)."""

    def __init__(self, scale: PositiveFloat = 0.4) -> None:
        self.scale = scale

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return by_place(changes, lambda each: self.scale * each.sum(0))
