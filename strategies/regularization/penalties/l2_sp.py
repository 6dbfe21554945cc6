"""L2-SP: Li, Grandvalet & Davoine 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks.

https://arxiv.org/abs/1802.01483. The weights are pulled to those that the stream started from, pretrained or not, in
every task. The head has no start that is worth keeping: it is pulled to 0. Defaults: alpha = beta = 0.01, those of the
authors' code. A model that does not tell its backbone apart is held to its start as a whole.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, quadratic
from forgetlab.toolbox.fisher import trainable


@register("regularizer", "l2_sp")
class L2SP(Regularizer):
    """strength * (sum_backbone (theta_i - theta^0_i)^2 + head * sum_head theta_i^2) / 2.

    strength is the paper's alpha, strength * head its beta.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    kept: ClassVar[tuple[str, ...]] = ("start",)  # theta^0
    from_start = True

    def __init__(self, strength: NonNegativeFloat = 0.01, head: NonNegativeFloat = 1.0) -> None:
        super().__init__(strength)
        self.head = head
        self.start: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        if not self.start:
            inside = "backbone." if hasattr(model, "backbone") else ""
            self.start = {name: p.detach().clone() for name, p in trainable(model) if name.startswith(inside)}

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        weight = {name: start.new_ones(()) for name, start in self.start.items()}
        centre = dict(self.start)
        for name, parameter in trainable(model):
            if name not in centre:
                weight[name], centre[name] = parameter.new_tensor(self.head), parameter.new_zeros(parameter.shape)
        return quadratic(model, weight, centre) / 2
