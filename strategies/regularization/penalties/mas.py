"""MAS: Aljundi et al. 2018, Memory Aware Synapses: Learning what (not) to forget, https://arxiv.org/abs/1711.09601.

Importance is how far a weight can move the logits; labels are not asked for. Omega is a mean over samples of each one's
absolute gradient, as the paper has it; the authors' code and Avalanche take that of a whole batch, in which samples
cancel. It is summed over tasks as in the paper and the authors' code (Avalanche and FACIL average old and new). Logits
of classes that may not be answered are left out of the norm. strength 1 is the authors'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, mixed, quadratic
from forgetlab.toolbox.fisher import sensitivity, trainable


@register("regularizer", "mas")
class MAS(Regularizer):
    """strength * sum_i Omega_i (theta_i - theta~_i)^2 (equation 3), Omega_i = E_x |d ||F(x)||^2 / d theta_i| (2)."""

    needs = frozenset({"boundaries", "passes"})
    kept: ClassVar[tuple[str, ...]] = ("importance", "anchor")  # Omega, theta~

    def __init__(self, strength: NonNegativeFloat = 1.0) -> None:
        super().__init__(strength)
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return quadratic(model, self.importance, self.anchor)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.importance = mixed(self.importance, 1, sensitivity(model, data), 1)
        self.anchor = {name: parameter.detach().clone() for name, parameter in trainable(model)}
