"""ER-ACE: Caccia et al. 2022, New Insights on Reducing Abrupt Representation Change in Online Continual Learning.

https://arxiv.org/abs/2104.05025. New samples do not push the classes of old ones away. As in the authors' code the two
terms are added (Avalanche halves them) and no boundary is needed; unlike there, classes that nobody has seen yet never
compete. A step for which nothing is drawn is one of plain cross-entropy.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Rehearsal, among


@register("rehearsal", "er_ace")
class AsymmetricCrossEntropy(Rehearsal):
    """CE(new; over the classes of the batch at hand) + CE(drawn; over all seen classes)."""

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        on_current, on_old = self.parts(model, new, drawn, output)
        return on_current + on_old

    def parts(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
        on_new, on_drawn = output[: len(new.y)], output[len(new.y) :]
        current = F.cross_entropy(among(on_new, new.y), new.y)
        return current, F.cross_entropy(on_drawn, drawn.y)
