"""Online EWC: Schwarz et al. 2018, Progress & Compress, https://arxiv.org/abs/1805.06370.

One Fisher and one anchor, the last weights, however many tasks there were: old Fishers fade by gamma with each task.
The paper leaves gamma open; 1, no fading, is the default of van de Ven's code (https://arxiv.org/abs/1904.07734).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from forgetlab.fisher import Variant, fisher
from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, padded, quadratic


@register("regularizer", "online_ewc")
class OnlineEWC(Regularizer):
    """strength / 2 * sum_i gamma F~_i (theta_i - theta~_i)^2 (equation 8), with F~ <- gamma F~ + F at a task's end."""

    needs = frozenset({"boundaries", "passes"})
    kept: ClassVar[tuple[str, ...]] = ("fisher", "anchor")  # F~, theta~

    def __init__(
        self,
        strength: NonNegativeFloat = 1e3,
        gamma: Annotated[float, Field(ge=0, le=1)] = 1.0,
        fisher: Variant = "exact",
    ) -> None:
        super().__init__(strength)
        self.gamma = gamma
        self.variant: Variant = fisher
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return self.gamma / 2 * quadratic(model, self.fisher, self.anchor)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        for name, new in fisher(model, data, self.variant, seed=self.seed).items():
            self.anchor[name] = model.get_parameter(name).detach().clone()
            self.fisher[name] = self.gamma * padded(self.fisher.get(name, torch.zeros_like(new)), new) + new
