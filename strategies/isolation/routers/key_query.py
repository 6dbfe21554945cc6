"""Key and query: Wang et al. 2022, DualPrompt (section 4.2), https://arxiv.org/abs/2204.04799.

Each task has one key, which is to lie near its samples' queries, the frozen backbone's features. The paper finds it by
gradient descent beside the prompt. Queries do not change in training, so the key that the loss asks for, the largest
mean cosine, is known: the direction of the sum of the queries, each of length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.isolation import Router
from forgetlab.plugins import register


@register("router", "key_query")
class KeyQuery(Router):
    """The task of the most similar key: argmax over t of cos(q(x), k_t), with sum over x of cos(q(x), k_t) largest."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}  # (d,) of length 1 each

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.keys[task] = F.normalize(F.normalize(features.detach(), dim=1).mean(0), dim=0)

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        keys = torch.stack([*self.keys.values()]).to(features.device)
        similarity = F.normalize(features, dim=1) @ keys.T
        return torch.tensor([*self.keys], device=features.device)[similarity.argmax(1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {str(task): key for task, key in self.keys.items()}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.keys = {task: tensors[str(task)] for task in sorted(map(int, tensors))}
