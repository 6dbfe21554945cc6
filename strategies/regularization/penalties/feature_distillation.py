"""Feature distillation, and LFL: Jung et al. 2016, Less-forgetting Learning in Deep Neural Networks, arXiv:1607.00122.

New samples are to have the features that they had under the last task's model, from the second task on. LFL is the
squared distance with ``freeze_head``: old rows of the softmax layer stay, and old boundaries with them. Both models
answer in evaluation mode, so that equal weights have equal features (Avalanche's LFL leaves the model there: no dropout
from then on). The price is a second pass of the backbone. The paper's strength is that of its own network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, Tensors, changing, frozen_copy


@register("regularizer", "feature_distillation")
class FeatureDistillation(Regularizer):
    """strength * E_x ||f(x) - f'(x)||^2 / 2, or strength * E_x (1 - cos(f(x), f'(x))); f' is the last task's."""

    kept: ClassVar[tuple[str, ...]] = ("backbone", "head")  # of the last task's model, what can change

    def __init__(
        self, strength: NonNegativeFloat = 1.0, distance: Literal["l2", "cosine"] = "l2", freeze_head: bool = False
    ) -> None:
        super().__init__(strength)
        self.cosine, self.freeze_head = distance == "cosine", freeze_head
        self.backbone, self.head = Tensors(), Tensors()
        self.teacher: nn.Module | None = None

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        backbone = model.get_submodule("backbone")
        if self.teacher is None:
            self.teacher = frozen_copy(backbone, self.backbone)
        with torch.no_grad():
            taught = self.teacher(batch.x)
        was_training = backbone.training
        learned = backbone.eval()(batch.x)
        backbone.train(was_training)
        if self.cosine:
            return 1 - F.cosine_similarity(learned, taught, dim=1).mean()
        return (learned - taught).square().sum(1).mean() / 2

    @torch.no_grad()
    def observe(self, model: nn.Module, loss: Tensor) -> None:
        for name, rows in self.head.items():
            model.get_parameter(name)[: len(rows)] = rows

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        kept = {name: t.detach().clone() for name, t in changing(model).items()}
        self.backbone = {n.removeprefix("backbone."): t for n, t in kept.items() if n.startswith("backbone.")}
        self.head = {n: t for n, t in kept.items() if self.freeze_head and n.startswith("head.")}
        self.teacher = None
