"""The contract of routers: whose module answers a sample when the task is not told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


class Router(ABC):
    """Infers the task of a sample from the bare backbone's features, each sample for itself."""

    # "passes": where `fit` reads features; "classes": where it needs two classes or more in each task
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries", "passes"})

    @abstractmethod
    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        """Learn a task from its training data, at its end. (N, d), (N,)"""

    @abstractmethod
    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        """(B, d) -> (B,) tasks; ``answers(task)`` gives that task's logits for the same samples (B, its classes)."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learned: tensors and plain values."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:  # noqa: B027 - may be empty
        """Take back what `state` gave."""


class ConfidenceRouter(Router):
    """Asks every task for its own answer and takes the surest one; the first of equals."""

    needs = frozenset({"boundaries"})

    def __init__(self) -> None:
        self.tasks: list[int] = []

    @abstractmethod
    def confidence(self, logits: Tensor) -> Tensor:
        """How sure a task is of its own answer. (B, its classes) -> (B,)"""

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.tasks.append(task)

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        sure = torch.stack([self.confidence(answers(task)) for task in self.tasks], dim=1)  # (B, tasks)
        return torch.tensor(self.tasks, device=sure.device)[sure.argmax(1)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"tasks": list(self.tasks)}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.tasks = list(values["tasks"])
