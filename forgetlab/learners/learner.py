"""The contract: what goes through a stream, learns when a task arrives, and answers its test samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from forgetlab.isolation.network import Files
from forgetlab.learners.context import Context
from forgetlab.learners.counts import Counts

Scores = dict[str, float]  # of one task's test samples
NamedTensors = dict[str, Tensor]


class Learner(ABC):
    """Goes through a stream."""

    context: Context
    counts: Counts
    prequential: list[float | None]
    trains: ClassVar[bool] = True  # by gradient, as the file says under ``train:``

    def prepare(self, context: Context) -> None:
        """Make ready for the first task."""
        self.context, self.counts, self.prequential = context, Counts(), []

    @property
    def latency(self) -> float | None:
        """How many times as long as the bare backbone an answer takes; None where nothing is attached to it."""
        return None

    @abstractmethod
    def learn(self, task: int) -> None:
        """Train when a task has arrived."""

    @abstractmethod
    def evaluate(self, task: int) -> Scores | None:
        """Answer a task's test samples; None where there is no answer yet."""

    def evaluate_all(self) -> list[Scores | None]:
        """The same for every task of the stream."""
        return [self.evaluate(task) for task in range(len(self.context.scenario.tasks))]

    def task_tensors(self, task: int) -> NamedTensors:
        """What belongs to this task alone and is stored as a file of its own."""
        return {}

    def files(self, task: int) -> Files:
        """What is stored when a task has ended."""
        tensors = self.task_tensors(task)
        return {f"task-{task}": (tensors, {})} if tensors else {}

    def current_backbone(self) -> nn.Module | None:
        """The backbone as it is now; None where there is not one."""
        return None
