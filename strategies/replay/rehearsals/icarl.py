"""iCaRL: Rebuffi et al. 2017, Incremental Classifier and Representation Learning, https://arxiv.org/abs/1611.07725.

Its exemplars are those of `herding`. The loss is summed over classes as in the paper; `over_classes:
mean` is that of the authors' code, of Avalanche and of PyCIL (for plain gradient descent a rate that
is divided by the number of classes). ``distillation`` weighs the old classes, which the paper does
not; in FACIL, whose configurations say 4, it stands beside a softmax cross-entropy for the labels.
Mirrored images are left out of the means. An old class that comes again is learned from its new
samples. Where the task is told, only its classes are learned, distilled and answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.replay import Batch, Rehearsal, Slots, competes, mean_directions, nearest
from forgetlab.toolbox.teacher import changing, frozen_copy, logits


@register("rehearsal", "icarl")
class ICaRL(Rehearsal):
    """sum_c w_c BCE(sigma(z_c), q_c) (algorithm 3), q = sigma(z'_c) before the task for old c, else
    one-hot; answers by the nearest mean of exemplars, argmin_c || phi(x) - mu_c || (algorithm 1).

    w_c is ``distillation`` where the target is the old model's, else 1; with `over_classes: mean` the
    sum is divided by the number of classes that compete for the sample. All features have length 1.
    """

    needs = frozenset({"boundaries"})
    always = reads_kept = True

    def __init__(
        self,
        distillation: NonNegativeFloat = 1.0,
        over_classes: Literal["sum", "mean"] = "sum",
    ) -> None:
        self.distillation, self.over_classes = distillation, over_classes
        self.tensors, self.means = dict[str, Tensor](), torch.empty(0)  # of the last task's model; (C, d)
        self.old, self.current = set[int](), set[int]()  # classes; the second as far as the task has shown them

    def begin(self, model: nn.Module) -> None:
        self.current, self.teacher = set(), frozen_copy(model, self.tensors) if self.tensors else model

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        x, y, task = (torch.cat(pair) for pair in zip(new[:3], drawn[:3], strict=True))
        self.current.update(new.y.tolist())
        target = F.one_hot(y, output.shape[1]).to(output)
        counts = competes(output)
        weight = counts.to(output)
        if self.old:
            distilled = torch.zeros_like(target, dtype=torch.bool).index_fill(1, y.new_tensor([*self.old]), True)
            distilled[(task == new.task[0]).nonzero(), [*self.current]] = False
            target = torch.where(distilled, logits(self.teacher, Batch(x, y, task)).sigmoid(), target)
            weight = torch.where(distilled, self.distillation * weight, weight)
        if self.over_classes == "sum":
            return F.binary_cross_entropy_with_logits(output, target, weight, reduction="sum") / len(y)
        each = F.binary_cross_entropy_with_logits(output, target, weight, reduction="none")
        return (each.sum(1) / counts.sum(1)).mean()

    def end(self, model: nn.Module, slots: Slots) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in changing(model).items()}
        self.old, self.means = self.old | self.current, mean_directions(model, slots)

    def answer(self, model: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        return nearest(model, x, self.means, output)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"means": self.means, **{f"model/{n}": t for n, t in self.tensors.items()}}, {"old": sorted(self.old)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.means, self.old = tensors["means"], set(values["old"])
        self.tensors = {name.removeprefix("model/"): t for name, t in tensors.items() if name != "means"}
