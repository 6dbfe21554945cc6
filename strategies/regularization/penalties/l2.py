"""L2 to the last task's weights: the baseline of Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796, figure 2.

EWC with every importance 1, around the last weights alone; rows of classes that came since are free. The paper gives no
strength.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, quadratic
from forgetlab.toolbox.fisher import trainable


@register("regularizer", "l2")
class L2(Regularizer):
    """strength / 2 * sum_i (theta_i - theta~_i)^2, theta~ the weights at the last task's end."""

    kept: ClassVar[tuple[str, ...]] = ("anchor",)  # theta~

    def __init__(self, strength: NonNegativeFloat = 1.0) -> None:
        super().__init__(strength)
        self.anchor: dict[str, Tensor] = {}

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        one = {name: centre.new_ones(()) for name, centre in self.anchor.items()}
        return quadratic(model, one, self.anchor) / 2

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.anchor = {name: parameter.detach().clone() for name, parameter in trainable(model)}
