"""LwF: Li & Hoiem 2016, Learning without Forgetting, https://arxiv.org/abs/1606.09282.

The divergence has the gradient of the paper's cross-entropy, and is 0 at the teacher. Like the paper
and Avalanche it has no factor T^2: a strength of 4 is that. Where no task is told, all old classes are one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.regularization import UNKNOWN, Batch, Regularizer, answers, changing, classes_at_test, frozen_copy


@register("regularizer", "lwf")
class LwF(Regularizer):
    """strength * sum_t KL(softmax(z'_t / T) || softmax(z_t / T)) (equation 2), z' from the last task's final model."""

    # figure 3: the loss on new samples is over the new task's outputs
    paper_protocol: ClassVar[Mapping[str, Any]] = {"loss_classes": "current"}

    def __init__(self, strength: NonNegativeFloat = 1.0, temperature: PositiveFloat = 2.0) -> None:
        super().__init__(strength)
        self.temperature = temperature
        self.classes: dict[int, set[int]] = {}  # that the teacher learned, by task
        self.tensors: dict[str, Tensor] = {}
        self.teacher: nn.Module | None = None

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        if self.teacher is None:
            self.teacher = frozen_copy(model, self.tensors)
        with torch.no_grad():
            taught = answers(self.teacher, batch.x)
        learned, every = answers(model, batch.x, output), set[int]().union(*self.classes.values())
        known = {t: classes_at_test(self.classes.get(t, ()), every, task_known=t != UNKNOWN) for t in taught}
        old = [self.divergence(learned[t][:, known[t]], taught[t][:, known[t]]) for t in taught if known[t]]
        return torch.stack(old).sum()

    def divergence(self, learned: Tensor, taught: Tensor) -> Tensor:
        """(B, C), (B, C) -> scalar"""
        learned, taught = ((z / self.temperature).log_softmax(1) for z in (learned, taught))
        return F.kl_div(learned, taught, reduction="batchmean", log_target=True)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.tensors, self.teacher = {name: t.detach().clone() for name, t in changing(model).items()}, None
        for batch in data:
            for task, label in torch.stack([batch.task, batch.y]).unique(dim=1).T.tolist():
                self.classes.setdefault(task, set()).add(label)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.tensors, {"classes": [[t, sorted(c)] for t, c in self.classes.items()], "tasks": self.tasks}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.tensors, self.teacher, self.tasks = dict(tensors), None, values["tasks"]
        self.classes = {task: set(classes) for task, classes in values["classes"]}
