"""SI: Zenke, Poole & Ganguli 2017, Continual Learning Through Synaptic Intelligence, https://arxiv.org/abs/1703.04200.

omega_t is the loss that a parameter's own steps took off: the sum of -g dtheta, exact as the steps get small. g is the
gradient of the task's loss alone, and Omega does not fall below 0, both as in the authors' code: the penalty's pull
back to the anchor is no learning. Defaults: the paper's for permuted MNIST.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, Tensors, Walk, padded, quadratic


@register("regularizer", "si")
class SI(Regularizer):
    """strength * sum_i Omega_i (theta_i - theta~_i)^2 (eq. 4), Omega_i = sum_t omega_t,i / (Delta_t,i^2 + xi) (5)."""

    kept: ClassVar[tuple[str, ...]] = ("importance", "anchor")  # Omega, theta~

    def __init__(self, strength: NonNegativeFloat = 0.1, xi: PositiveFloat = 0.1) -> None:
        super().__init__(strength)
        self.xi = xi
        self.importance, self.anchor = Tensors(), Tensors()
        self.walk: Walk | None = None  # of the task in training

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return quadratic(model, self.importance, self.anchor)

    def begin(self, model: nn.Module) -> None:
        self.walk = Walk(model, {})

    def observe(self, model: nn.Module, loss: Tensor) -> None:
        assert self.walk is not None
        self.walk.step(model, self.strength, self.importance, self.anchor)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        assert self.walk is not None
        self.anchor = {name: model.get_parameter(name).detach().clone() for name in self.walk.start}
        for name, theta in self.anchor.items():
            gained = self.walk.gain[name] / ((theta - self.walk.start[name]) ** 2 + self.xi)
            old = self.importance.get(name, gained[:0])
            self.importance[name] = (padded(old, gained) + gained).clamp(min=0)
        self.walk = None
