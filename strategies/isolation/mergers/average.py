"""Average: Wortsman et al. 2022, Model Soups (the uniform soup), https://arxiv.org/abs/2203.05482."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from forgetlab.isolation import Changes, Merger, by_place
from forgetlab.plugins import register


@register("merger", "average")
class Average(Merger):
    """(1 / T) sum over t of tau_t; a task that leaves a place alone counts there, with no change."""

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return by_place(changes, lambda each: each.mean(0))
