"""Largest probability: Hendrycks & Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples
in Neural Networks, https://arxiv.org/abs/1610.02136.

There one network's largest softmax probability p says whether a sample is its own; here the tasks' are compared. With C
classes p is at least 1/C, so it is put on one scale for all tasks, as `entropy` does: (p - 1/C) / (1 - 1/C) is 0 where
the softmax is uniform and 1 where it is sure. What is compared is the logarithm of what is missing to 1: a p that
rounds to 1 would make two sure tasks equal. A task of one class says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from forgetlab.isolation import Router
from forgetlab.plugins import register


@register("router", "max_probability")
class LargestProbability(Router):
    """The task whose own answer is surest: argmax over t of (p_t - 1/C_t) / (1 - 1/C_t), p_t = max softmax f_t(x)."""

    needs = frozenset({"boundaries"})

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.tasks.append(task)

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        doubts = torch.stack([log_doubt(answers(task)) for task in self.tasks], dim=1)  # (B, tasks)
        return torch.tensor(self.tasks, device=doubts.device)[doubts.argmin(1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"tasks": list(self.tasks)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.tasks = list(values["tasks"])


def log_doubt(logits: Tensor) -> Tensor:
    """log of (1 - p) / (1 - 1/C), at most 0. (B, C) -> (B,)"""
    n_classes = logits.shape[1]
    if n_classes == 1:
        return torch.zeros_like(logits[:, 0])
    rest = logits.sort(1).values[:, :-1]
    return rest.logsumexp(1) - logits.logsumexp(1) - math.log1p(-1 / n_classes)
