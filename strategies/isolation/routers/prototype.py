"""Nearest prototype: Rebuffi et al. 2017, iCaRL (nearest mean of exemplars), https://arxiv.org/abs/1611.07725.

Here on the frozen backbone's features, with the mean over all training samples of a class, and used to find the
task rather than the class (as in Janson et al. 2022, https://arxiv.org/abs/2210.04428, who classify this way).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.isolation import Router
from forgetlab.plugins import register


@register("router", "prototype")
class Prototype(Router):
    """The task of the class whose mean feature is nearest by cosine: argmax over c of cos(f, mu_c)."""

    def __init__(self) -> None:
        self.means = torch.empty(0)  # (C, d)
        self.tasks = torch.empty(0, dtype=torch.int64)  # (C,)

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        new = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
        owner = torch.full((len(new),), task, device=new.device)
        known = len(self.tasks) > 0
        self.means = torch.cat([self.means, new]) if known else new
        self.tasks = torch.cat([self.tasks, owner]) if known else owner

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        similarity = F.normalize(features, dim=1) @ F.normalize(self.means, dim=1).T
        return self.tasks[similarity.argmax(1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"means": self.means, "tasks": self.tasks}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.means, self.tasks = tensors["means"], tensors["tasks"]
