"""L2 Init: Kumar, Marklund & Van Roy 2023, Maintaining Plasticity in Continual Learning via Regenerative
Regularization, https://arxiv.org/abs/2308.11958.

For plasticity, not against forgetting: weights that the loss leaves alone drift back to where they started, in the
first task too. A row that comes with a new class is held around its own start. The paper tunes the strength among
powers of ten from 1e-5 to 1e-2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, quadratic
from forgetlab.toolbox.fisher import trainable


@register("regularizer", "l2_init")
class L2Init(Regularizer):
    """strength * sum_i (theta_i - theta_0,i)^2, theta_0 the weights that training started from."""

    from_start: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = ("start",)  # theta_0

    def __init__(self, strength: NonNegativeFloat = 1e-3) -> None:
        super().__init__(strength)
        self.start: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        for name, parameter in trainable(model):
            theta, known = parameter.detach(), self.start.get(name)
            old = 0 if known is None else len(known)
            if known is None:
                self.start[name] = theta.clone()
            elif old < len(theta):
                self.start[name] = torch.cat([known, theta[old:]])

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return quadratic(model, dict.fromkeys(self.start, torch.ones(())), self.start)
