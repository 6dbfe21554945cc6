"""What happens in runs, as values that observers are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from forgetlab.experiment import Run, Strategy
from forgetlab.isolation.network import Files
from forgetlab.results.store import Result, RunFolder
from forgetlab.training.loop import Epoch

TaskSeconds = Mapping[str, Mapping[str, float]]  # of "train" and "evaluate", by the clocks "processor" and "wall"


@dataclass(frozen=True)
class TaskStarted:
    run: Run
    task: int
    n_tasks: int


@dataclass(frozen=True)
class EpochEnded:
    run: Run
    task: int
    epoch: Epoch


@dataclass(frozen=True)
class TaskEnded:
    """A task is learned and all are evaluated."""

    run: Run
    task: int
    n_tasks: int
    so_far: Callable[[], Result]  # to be called before the next task begins, if at all: it grows with the stream
    seconds: TaskSeconds
    tensors: Mapping[str, Tensor]  # what belongs to this task alone
    latency: float | None = None  # a forward pass under the first task's module, over one of the bare backbone
    files: Files = field(default_factory=dict)  # what is stored: of this task, and of all together

    @cached_property
    def result(self) -> Result:
        """All rows so far."""
        return self.so_far()


Event = TaskStarted | EpochEnded | TaskEnded
Observer = Callable[[Event], None]


@dataclass(frozen=True)
class Lasting:
    """What is worth telling when a run is over."""


@dataclass(frozen=True)
class RunFound(Lasting):
    """A finished run was found again."""

    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class RunEnded(Lasting):
    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class RunFailed(Lasting):
    """A run stopped with an error; the rows of its finished tasks are kept, and the traceback beside them."""

    run: Run
    folder: RunFolder
    error: Exception

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another an error goes as its words: it may hold anything."""
        return RunFailed, (self.run, self.folder, RuntimeError(str(self.error) or type(self.error).__name__))


@dataclass(frozen=True)
class TrialEnded(Lasting):
    """A run of a search is done; the last of it as it would be told of any run."""

    run: Run
    entry: Strategy
    number: str  # which trial, with what
    last: RunFound | RunEnded | RunFailed
