"""Distillation on what is drawn: Hinton et al. 2015, Distilling the Knowledge in a Neural Network,
https://arxiv.org/abs/1503.02531, for replay as in van de Ven & Tolias 2018, https://arxiv.org/abs/1809.10635.

Beside the memory `generative` it makes DGR with distillation; beside one that keeps samples, DER by divergence instead
of distance. New samples and drawn ones count alike; van de Ven weighs them by the tasks they stand for, which is
`replay: {weight: by_tasks}`. Classes that were not there when the logits were made have the target 0.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Rehearsal, widened


@register("rehearsal", "soft_targets")
class SoftTargets(Rehearsal):
    """The mean of CE(new) and T^2 CE(softmax(z' / T), softmax(z / T)) over all samples, z' what came with the drawn."""

    keeps_logits: ClassVar[bool] = True

    def __init__(self, temperature: PositiveFloat = 2.0) -> None:
        self.temperature = temperature

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        n = len(new.y)
        told = self.told(drawn, output[n:])
        on_new = F.cross_entropy(output[:n], new.y, reduction="sum")
        return (on_new + self.temperature**2 * told.sum()) / len(output)

    def parts(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
        n = len(new.y)
        told = self.told(drawn, output[n:])
        return F.cross_entropy(output[:n], new.y), self.temperature**2 * told.mean()

    def told(self, drawn: Batch, output: Tensor) -> Tensor:
        """CE(softmax(z' / T), softmax(z / T)) of each drawn sample; its logits z (m, C). -> (m,)"""
        stored = widened(drawn.extra["logits"], output.shape[1])
        soft = (stored / self.temperature).softmax(1)
        return -(soft * (output / self.temperature).log_softmax(1)).sum(1)
