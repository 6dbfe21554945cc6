"""DER++: Buzzega et al. 2020, Dark Experience for General Continual Learning, https://arxiv.org/abs/2004.07211.

The squared error is the mean over logits, as in the authors' code, over those that the network had when the sample was
stored. The paper draws a batch for each term on the memory; here one serves both: the same expected gradient, at half
the replayed samples. Defaults: theirs for Split CIFAR-10 with 500 samples.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Rehearsal, competes


@register("rehearsal", "der++")
class DarkExperience(Rehearsal):
    """CE(new) + alpha * mean (z' - z)^2 + beta * CE(drawn) (equation 6), z' stored; DER where beta is 0."""

    keeps_logits: ClassVar[bool] = True

    def __init__(self, alpha: NonNegativeFloat = 0.2, beta: NonNegativeFloat = 0.5) -> None:
        self.alpha, self.beta = alpha, beta

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        on_new, on_drawn = output[: len(new.y)], output[len(new.y) :]
        stored = drawn.extra["logits"]
        there = competes(stored)
        error = (on_drawn[:, : stored.shape[1]] - stored).masked_fill(~there, 0.0)
        dark = error.square().sum() / there.sum()
        return F.cross_entropy(on_new, new.y) + self.alpha * dark + self.beta * F.cross_entropy(on_drawn, drawn.y)
