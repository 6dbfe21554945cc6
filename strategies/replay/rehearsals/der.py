"""DER++: Buzzega et al. 2020, Dark Experience for General Continual Learning, https://arxiv.org/abs/2004.07211.

The squared error is the mean over logits, as in the authors' code, over those that the network had
when the sample was stored. As in algorithm 2 and in the authors' code each term on the memory has a
batch of its own; `draws: 1` makes one batch serve both, as Avalanche does: the same expected
gradient, at half the replayed samples. All of them pass the network together, where the authors'
three passes normalise each batch apart. Defaults: theirs for Split CIFAR-10 with 500 samples.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Rehearsal, competes


@register("rehearsal", "der++")
class DarkExperience(Rehearsal):
    """CE(new) + alpha * mean (z' - z)^2 + beta * CE(drawn) (equation 6), z' stored; DER where beta is 0.

    The two terms on the memory are over two batches, drawn one after the other; a term without weight draws none.
    """

    keeps_logits: ClassVar[bool] = True

    def __init__(
        self,
        alpha: NonNegativeFloat = 0.2,
        beta: NonNegativeFloat = 0.5,
        draws: Literal[1, 2] = 2,
    ) -> None:
        self.alpha, self.beta = alpha, beta
        self.draws = draws if alpha and beta else 1

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        on_new, on_drawn = output[: len(new.y)], output[len(new.y) :]
        size = len(drawn.y) // self.draws
        first, last = slice(size), slice(len(drawn.y) - size, None)  # the same samples where one is drawn
        stored = drawn.extra["logits"][first]
        there = competes(stored)
        error = (on_drawn[first, : stored.shape[1]] - stored).masked_fill(~there, 0.0)
        dark = error.square().sum() / there.sum()
        labelled = F.cross_entropy(on_drawn[last], drawn.y[last])
        return F.cross_entropy(on_new, new.y) + self.alpha * dark + self.beta * labelled
