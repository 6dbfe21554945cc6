"""Backbone and head as one model: global labels, a finite mask over classes that may not compete.

Avalanche's own multi-head model answers 0 for the classes of other heads, which beats every negative logit; here
they get `MASK`. Who competes is decided by `forgetlab.training.competing_classes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import CLExperience, MultiTaskModule
from forgetlab.avalanche.tensor_data import TensorTask
from forgetlab.batch import UNKNOWN
from forgetlab.training.competing_classes import LossClasses, all_seen, only, support, table_of
from forgetlab.training.heads import Head, TaskHeads


class Network(MultiTaskModule, ABC):
    """What is trained and asked: (x, task) -> logits over all classes opened so far."""

    def __init__(self, backbone: nn.Module, *, task_known: bool, seed: int) -> None:
        super().__init__()
        self.backbone, self.task_known, self.seed = backbone, task_known, seed
        self.n_features: int = backbone.n_features  # type: ignore[assignment]
        self.classes_of: dict[int, list[int]] = {}
        self.general: Head | None = None  # over data from elsewhere, in training alone

    @abstractmethod
    def open(self, task: int, classes: Sequence[int]) -> None:
        """Make room for a task; nothing happens where there is room already."""

    @abstractmethod
    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """(B, ...), (B,) tasks or UNKNOWN -> (B, width)"""

    @property
    def width(self) -> int:
        """The number of classes opened so far."""
        return max((max(classes) + 1 for classes in self.classes_of.values()), default=0)

    def can_answer(self, task: int, classes: Sequence[int]) -> bool:
        """Whether this task's test samples have an answer yet: its classes, or itself where it is told, are open."""
        opened = {label for known in self.classes_of.values() for label in known}
        return task in self.classes_of if self.task_known else all_seen(classes, opened)

    def adaptation(self, experience: CLExperience) -> None:
        """Avalanche's call before each experience, evaluated ones included: only training opens anything."""
        if experience.origin_stream.name == "train":
            for task, classes in classes_by_task(experience).items():
                self.open(task, classes)

    def stored(self) -> dict[str, Tensor]:
        """All tensors that must be kept to answer."""
        state = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        return {name: tensor for name, tensor in state.items() if not name.startswith("general.")}


class SharedNetwork(Network):
    """One backbone for all tasks, trained as a whole."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Literal["growing", "fixed", "per-task"] = "growing",
        loss_classes: LossClasses = "seen",
        task_known: bool = False,
        n_classes: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, task_known=task_known, seed=seed)
        self.loss_classes: LossClasses = loss_classes
        self.head: Head | TaskHeads = TaskHeads() if head == "per-task" else Head(self.n_features, seed)
        if head == "fixed" and isinstance(self.head, Head):
            self.head.grow(range(n_classes))
        self.current: int = UNKNOWN
        self.table: Tensor  # (tasks, rows): which classes a task has
        self.register_buffer("table", torch.zeros(0, 0, dtype=torch.bool), persistent=False)

    def adaptation(self, experience: CLExperience) -> None:
        super().adaptation(experience)
        if experience.origin_stream.name == "train" and len(classes_by_task(experience)) > 1:
            self.current = UNKNOWN  # in joint training no task is the current one: all seen classes compete

    def open(self, task: int, classes: Sequence[int]) -> None:
        """Add rows for the classes that are new, or a head for the task."""
        self.current = task
        known = self.classes_of.get(task, [])
        new = sorted({*classes} - {*known})
        self.classes_of[task] = known + new
        if isinstance(self.head, Head):
            self.head.grow(range(len(self.head.weight), self.width))
        else:
            self.head.grow(task, new, Head(self.n_features, self.seed).to(self.table.device))
        rows = len(self.head.weight) if isinstance(self.head, Head) else self.width
        self.table = table_of(self.classes_of, rows).to(self.table.device)

    def forward(self, x: Tensor, task_labels: Tensor | EllipsisType | None = ...) -> Any:
        """(B, ...), (B,) -> (B, width)

        With None for the tasks, as Avalanche's LwF asks, {task: (B, width)} for all open ones; with x alone, as its DER
        and GSS ask, the logits of every row, which no mask has changed.
        """
        features = self.backbone(x)
        if isinstance(task_labels, EllipsisType):
            if isinstance(self.head, TaskHeads):
                raise TypeError("which head is to answer? With a head per task, every sample needs its task")
            return self.head(features)
        if task_labels is None:
            every = {task: torch.full((len(x),), task, device=x.device) for task in self.classes_of}
            return {task: self.answer(features, labels) for task, labels in every.items()}
        return self.answer(features, task_labels)

    def answer(self, features: Tensor, task: Tensor) -> Tensor:
        """The logits of features. (B, d), (B,) -> (B, width)"""
        if isinstance(self.head, TaskHeads):
            return self.head.answer(features, task, self.classes_of, self.width)
        logits = self.head(features)
        return only(logits, self._support(task, logits.shape[1]))

    def _support(self, task: Tensor, rows: int) -> Tensor | None:
        """Which classes compete: (rows,) or (B, rows) of bool, or None for all."""
        return support(
            task,
            self.table,
            rows,
            self.width,
            task_known=self.task_known,
            loss_classes=self.loss_classes if self.training else None,
            current=self.current,
        )


def classes_by_task(experience: Any) -> dict[int, list[int]]:
    """The classes of each task in an experience; joint experiences hold several tasks."""
    dataset = experience.dataset
    columns = dataset.columns() if isinstance(dataset, TensorTask) else None
    if columns is None:
        return {experience.current_experience: sorted(experience.classes_in_this_experience)}
    _, labels, tasks = columns
    if bool((tasks == UNKNOWN).all()):  # a stream that does not tell: what is at hand goes by its place
        return {experience.current_experience: labels.unique().tolist()}
    return {task: labels[tasks == task].unique().tolist() for task in tasks.unique().tolist()}
