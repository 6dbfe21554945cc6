"""Streams of two classes a task, from samples made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forgetlab.avalanche.api import CLScenario, benchmark_from_datasets, with_classes_timeline, with_task_labels
from forgetlab.avalanche.tensor_data import TensorTask
from forgetlab.data.datasets import Samples
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario, Task


def in_pairs(train: Sequence[Samples], test: Sequence[Samples] | None = None, told: bool = False) -> Scenario:
    """Task t holds the classes 2t and 2t + 1; it is tested on its training samples where no others are given.

    ``told``: whether a test sample's task is known.
    """
    tasks = []
    for number, (learned, asked) in enumerate(zip(train, test or train, strict=True)):
        tasks.append(Task(f"task {number}", learned, asked, (2 * number, 2 * number + 1)))
    names = tuple("abcdefghijklmnopqrstuvwxyz"[: 2 * len(tasks)])
    return Scenario(tuple(tasks), names, task_known_at_test=told)


def opposed(name: str, size: int, tasks: int = 3) -> list[Samples]:
    """Two classes a task, ``size`` samples of 6 features, which the next task uses the other way round."""
    draw, found = generator(name), []
    for task in range(tasks):
        y = 2 * task + torch.arange(size) % 2
        x = torch.randn(size, 6, generator=draw) + 1.5 * torch.eye(6)[y % 6] * (-1) ** task
        found.append(Samples(x, y))
    return found


def under_one_label(tasks: Sequence[Samples]) -> CLScenario:
    """As Avalanche's class-incremental benchmarks are: every task carries the label 0."""
    found = [TensorTask.of(samples, task=0) for samples in tasks]
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=found)))
