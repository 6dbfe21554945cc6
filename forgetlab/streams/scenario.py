"""A stream as a value: a sequence of tasks cut from a data set, and what the learner may know about them.

Inputs may be bytes (uint8, images): they become float32 in [0, 1] when a batch is made (`forgetlab.data.as_input`).

Labels are numbered in the order in which their classes appear, so task 0 of a class-incremental stream holds the
labels 0, 1, ...; `Scenario.class_names` says which class of the data set each label is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from forgetlab.data import digests
from forgetlab.data.datasets import Samples
from forgetlab.data.mapped_rows import Rows
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator

Setting = Literal["class-incremental", "task-incremental", "domain-incremental", "data-incremental"]
DomainChanges = Mapping[str, Callable[[Tensor], Tensor]]  # of a domain's name to what it does with inputs (N, ...)


@dataclass(frozen=True)
class Task:
    """One step of the stream."""

    name: str
    train: Samples
    test: Samples
    classes: tuple[int, ...]  # the labels that occur in it
    validation: Samples | None = None  # training data kept apart, for selection

    @cached_property
    def tested(self) -> tuple[int, ...]:
        """The labels that its test samples have."""
        return tuple(self.test.y.unique().tolist())


@dataclass(frozen=True)
class Scenario:
    """A stream of tasks, and what the learner may know of it."""

    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]  # of label 0, 1, ...
    task_known_at_test: bool
    held_back: Task | None = None  # classes that the stream leaves out, for a pretraining stage
    boundaries_known: bool = True  # whether training tells where a task ends and which one it is
    one_pass: bool = False  # online: every sample passes by once
    tokenizer: str | None = None
    scores: tuple[str, ...] = ()
    rows_may_repeat: bool = False

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.tasks[0].train.x.shape[1:])

    def part(self, first: int, last: int | None = None) -> Scenario:
        """The tasks from ``first`` to before ``last`` as a stream of their own, whose labels are numbered anew."""
        tasks = self.tasks[first:last]
        order = list(dict.fromkeys(label for task in tasks for label in sorted(task.classes)))
        if order == list(range(self.n_classes)):
            return replace(self, tasks=tasks)
        number = torch.full((self.n_classes,), -1, dtype=torch.int64)
        number[order] = torch.arange(len(order))
        names = tuple(self.class_names[label] for label in order)
        return replace(self, tasks=tuple(_renumbered(task, number) for task in tasks), class_names=names)

    def with_validation(self, share: float) -> Scenario:
        """Each task that keeps no validation data apart gives this share of every class's training samples for it.

        They are always the same ones, whatever the seed.
        """
        tasks = [
            task if task.validation else _divided(task, share, generator("validation of a task", i))
            for i, task in enumerate(self.tasks)
        ]
        return replace(self, tasks=tuple(tasks))

    def on_validation(self) -> Scenario:
        """The same stream, evaluated on validation data: what selects must not see test data.

        Raises:
            OptionError: the stream keeps none apart.
        """
        parts = [task.validation for task in self.tasks]
        if None in parts:
            raise OptionError("the stream keeps no validation data apart: give its scenario 'validation: 0.1'")
        tasks = [replace(task, test=part, validation=None) for task, part in zip(self.tasks, parts, strict=True)]
        return replace(self, tasks=tuple(tasks))

    def checksum(self) -> str:
        """A digest of every tensor and name in the stream, the same wherever the inputs are held.

        What is on disk is read for it once, and again when a file's path, size or time is another.
        """
        parts = [part for task in self._all_tasks for part in (task.train, task.test, task.validation) if part]
        if any(isinstance(part.x, Rows) for part in parts):
            return digests.remembered(self._digest(digests.marks), lambda: self._digest(digests.content))
        return self._digest(digests.content)

    @property
    def _all_tasks(self) -> tuple[Task, ...]:
        return (*self.tasks, *([self.held_back] if self.held_back else []))

    def _digest(self, read: Callable[[Tensor], Iterable[Any]]) -> str:
        told = self.task_known_at_test, self.boundaries_known, self.one_pass, self.tokenizer, self.scores
        digest = hashlib.sha256(repr((self.class_names, told)).encode())
        for task in self._all_tasks:
            digest.update(repr((task.name, task.classes)).encode())
            for tensor in (*task.train, *task.test, *(task.validation or ())):
                digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
                for some in read(tensor):
                    digest.update(some)
        return digest.hexdigest()


def _renumbered(task: Task, number: Tensor) -> Task:
    def anew(samples: Samples) -> Samples:
        return Samples(samples.x, number[samples.y])

    classes = tuple(sorted(number[list(task.classes)].tolist()))
    validation = task.validation and anew(task.validation)
    return replace(task, train=anew(task.train), test=anew(task.test), classes=classes, validation=validation)


def _divided(task: Task, share: float, draw: Generator) -> Task:
    """The same share of every class is kept apart, of each of two samples or more at least one."""
    train, apart = task.train, torch.zeros(len(task.train.y), dtype=torch.bool)
    for label in train.y.unique():
        rows = (train.y == label).nonzero().squeeze(1)
        n = min(max(round(share * len(rows)), 1), len(rows) - 1)
        apart[rows[torch.randperm(len(rows), generator=draw)[:n]]] = True
    kept, held = (Samples(train.x[rows], train.y[rows]) for rows in ((~apart).nonzero()[:, 0], apart.nonzero()[:, 0]))
    return replace(task, train=kept, validation=held)


def pretraining_tasks(pretrain: Mapping[str, Any], scenario: Scenario, seed: int) -> tuple[Task, ...]:
    """What is pretrained on: another scenario's data, or the classes that the stream holds back.

    Raises:
        OptionError: the stream holds no classes back, or the inputs have another shape.
    """
    spec = pretrain.get("scenario")
    if spec is not None:
        options = {key: value for key, value in spec.items() if key != "name"}
        other: Scenario = registry.build("scenario", spec["name"], options, seed=seed)
        if other.input_shape != scenario.input_shape:
            shapes = f"{other.input_shape} in {spec['name']}, {scenario.input_shape} in the stream"
            raise OptionError(f"the inputs have another shape: {shapes}", "scenario")
        return other.tasks
    if scenario.held_back is None:
        raise OptionError("name a scenario to pretrain on, or let the stream's scenario hold classes back")
    return (scenario.held_back,)
