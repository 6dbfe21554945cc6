"""Lowest entropy: von Oswald et al. 2020, Continual Learning with Hypernetworks (HNET+ENT),
https://arxiv.org/abs/1906.00695.

There all tasks have equally many classes. Here an entropy is divided by the largest that its task's C classes allow,
log C: 0 is sure, 1 is uniform, whatever C is. A task of one class is always sure; it counts as 1, saying nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from forgetlab.isolation import Router
from forgetlab.plugins import register


@register("router", "entropy")
class LowestEntropy(Router):
    """The task whose own answer is surest: argmin over t of H(softmax f_t(x)) / log C_t (no number in the paper)."""

    needs = frozenset({"boundaries"})

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.tasks.append(task)

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        entropies = torch.stack([normalised_entropy(answers(task)) for task in self.tasks], dim=1)  # (B, tasks)
        return torch.tensor(self.tasks, device=entropies.device)[entropies.argmin(1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"tasks": list(self.tasks)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.tasks = list(values["tasks"])


def normalised_entropy(logits: Tensor) -> Tensor:
    """H(softmax) / log C, from 0 to 1. (B, C) -> (B,)"""
    n_classes, log_p = logits.shape[1], logits.log_softmax(1)
    if n_classes == 1:
        return torch.ones_like(log_p[:, 0])
    return -(log_p.exp() * log_p).sum(1) / math.log(n_classes)
