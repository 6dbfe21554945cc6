"""Union of heads: Liang & Li 2024, InfLoRA (argmax over all heads side by side), https://arxiv.org/abs/2404.00228.

There one summed module feeds all heads; here each head answers behind its own task's module. What is compared are raw
logits. Nothing made them comparable: each head was trained alone, and a constant added to all of its logits would
have left its softmax as it was. So the heads' scale decides as well as the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from forgetlab.isolation import Router
from forgetlab.plugins import register


@register("router", "union")
class UnionOfHeads(Router):
    """The task of the largest logit of all: argmax over t of max over c of f_t(x)_c (no number in the paper)."""

    needs = frozenset({"boundaries"})

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.tasks.append(task)

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        largest = torch.stack([answers(task).amax(1) for task in self.tasks], dim=1)  # (B, tasks)
        return torch.tensor(self.tasks, device=largest.device)[largest.argmax(1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"tasks": list(self.tasks)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.tasks = list(values["tasks"])
