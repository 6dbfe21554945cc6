"""Streams: a sequence of tasks cut from a data set, and what the learner may know about them.

Inputs may be bytes (uint8, images): they become float32 in [0, 1] when a batch is made (`as_input`).

Labels are numbered in the order in which their classes appear, so task 0 of a class-incremental stream holds the
labels 0, 1, ...; `Scenario.class_names` says which class of the data set each label is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from forgetlab import plugins
from forgetlab.plugins import OptionError
from forgetlab.seeding import generator

Setting = Literal["class-incremental", "task-incremental", "domain-incremental", "data-incremental"]

Changes = Mapping[str, Callable[[Tensor], Tensor]]  # of a domain's name to what it does with inputs (N, ...)


class Samples(NamedTuple):
    """Inputs and labels, one row per sample."""

    x: Tensor  # (N, ...) float, or uint8
    y: Tensor  # (N,) int64


@dataclass(frozen=True)
class Dataset:
    """A data set with its official, or fixed, division into training and test data."""

    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...] = ()  # months, authors, sources: what a row came from, where the data tell it
    domains: tuple[Tensor, Tensor] | None = None  # (N,) of the training rows and (M,) of the test rows
    tokenizer: str | None = None  # text: whose ids x holds
    scores: tuple[str, ...] = ()  # what to look at beside accuracy: names in `forgetlab.scores`


@dataclass(frozen=True)
class Task:
    """One step of the stream."""

    name: str
    train: Samples
    test: Samples
    classes: tuple[int, ...]  # the labels that occur in it
    validation: Samples | None = None  # training data kept apart, for selection


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

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.tasks[0].train.x.shape[1:])

    def checksum(self) -> str:
        """A digest of every tensor and name in the stream."""
        told = self.task_known_at_test, self.boundaries_known, self.one_pass, self.tokenizer, self.scores
        digest = hashlib.sha256(repr((self.class_names, told)).encode())
        for task in (*self.tasks, *([self.held_back] if self.held_back else [])):
            digest.update(repr((task.name, task.classes)).encode())
            for tensor in (*task.train, *task.test, *(task.validation or ())):
                digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def dataset(spec: str | Mapping[str, Any]) -> Dataset:
    """A data set by its registered name, or by {"name": its name, option: value, ...}."""
    if isinstance(spec, str):
        return plugins.build("data", spec)
    return plugins.build("data", spec["name"], {key: value for key, value in spec.items() if key != "name"})


def as_input(x: Tensor) -> Tensor:
    """What a model is given: bytes as float32 in [0, 1], anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def split(data: Dataset, *, setting: Setting, n_tasks: int, seed: int, held_back: int = 0) -> Scenario:
    """Cut a data set into tasks of different classes; the seed draws the order of the classes.

    - class-incremental: the label set grows and all seen classes compete;
    - task-incremental: the same, but the task is told at test and only its classes compete;
    - domain-incremental: a label is the position of the class within its task (van de Ven et al. 2022,
      https://doi.org/10.1038/s42256-022-00568-3), so every task has the same labels.

    The first ``held_back`` classes of the order stay out of the stream.

    Raises:
        OptionError: there are fewer classes than tasks, or a domain-incremental cut is uneven.
    """
    everything = torch.randperm(len(data.class_names), generator=generator("class_order", seed)).tolist()
    held, order = everything[:held_back], everything[held_back:]
    n_classes = len(order)
    if n_tasks > n_classes:
        kept = f" ({held_back} of {len(everything)} are held back)" if held_back else ""
        raise OptionError(f"{n_tasks} tasks cannot be cut from {n_classes} classes{kept}", "n_tasks")
    if setting == "domain-incremental" and n_classes % n_tasks:
        raise OptionError(f"{n_classes} classes do not divide evenly into {n_tasks} domains", "n_tasks")
    groups = [part.tolist() for part in torch.tensor(order).tensor_split(n_tasks)]
    same_labels = setting == "domain-incremental"
    label = {old: i if same_labels else order.index(old) for group in groups for i, old in enumerate(group)}
    names = [data.class_names[old] for old in order]
    tasks = tuple(_task(data, group, label, data.class_names) for group in groups)
    if same_labels:
        names = ["/".join(column) for column in zip(*(task.name.split(",") for task in tasks), strict=True)]
    left_out = _task(data, held, {old: i for i, old in enumerate(held)}, data.class_names) if held else None
    return Scenario(tasks, tuple(names), setting == "task-incremental", left_out)


def domains(data: Dataset, change: Changes, setting: Setting) -> Scenario:
    """The same data in every task, changed in a way of its own; a name and a function (N, ...) -> (N, ...) each.

    Every task has all labels; in the class-incremental setting each task's labels are new ones.
    """
    n_classes, tasks = len(data.class_names), []
    for i, (name, function) in enumerate(change.items()):
        first = i * n_classes if setting == "class-incremental" else 0
        train, test = (Samples(function(part.x), part.y + first) for part in (data.train, data.test))
        tasks.append(Task(name, train, test, tuple(range(first, first + n_classes))))
    names = data.class_names
    if setting == "class-incremental":
        names = tuple(f"{name} {domain}" for domain in change for name in data.class_names)
    return Scenario(tuple(tasks), names, setting == "task-incremental")


def _task(data: Dataset, group: Sequence[int], label: dict[int, int], names: Sequence[str]) -> Task:
    def part(samples: Samples) -> Samples:
        rows = torch.isin(samples.y, torch.tensor(group)).nonzero().squeeze(1)
        y = torch.tensor([label[old] for old in samples.y[rows].tolist()], dtype=torch.int64)
        return Samples(samples.x[rows], y)

    labels = tuple(sorted({label[old] for old in group}))
    return Task(",".join(names[old] for old in group), part(data.train), part(data.test), labels)


def held_out(x: Tensor, y: Tensor, class_names: Sequence[str], test_share: float, seed: int) -> Dataset:
    """Divide data that has no official test set: the same share of every class, drawn once by a fixed seed."""
    draw = generator("held_out", seed)
    is_test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(len(class_names)):
        rows = (y == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(rows), generator=draw)[: round(test_share * len(rows))]
        is_test[rows[chosen]] = True
    train, test = Samples(x[~is_test], y[~is_test]), Samples(x[is_test], y[is_test])
    return Dataset(train, test, tuple(class_names))


def pretraining_tasks(pretrain: Mapping[str, Any], scenario: Scenario, seed: int) -> tuple[Task, ...]:
    """What is pretrained on: another scenario's data, or the classes that the stream holds back.

    Raises:
        OptionError: the stream holds no classes back, or the inputs have another shape.
    """
    spec = pretrain.get("scenario")
    if spec is not None:
        options = {key: value for key, value in spec.items() if key != "name"}
        other: Scenario = plugins.build("scenario", spec["name"], options, seed=seed)
        if other.input_shape != scenario.input_shape:
            shapes = f"{other.input_shape} in {spec['name']}, {scenario.input_shape} in the stream"
            raise OptionError(f"the inputs have another shape: {shapes}", "scenario")
        return other.tasks
    if scenario.held_back is None:
        raise OptionError("name a scenario to pretrain on, or let the stream's scenario hold classes back")
    return (scenario.held_back,)
