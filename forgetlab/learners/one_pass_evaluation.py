"""Answers to the test samples of many tasks in one pass, where each depends on its sample and its task alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import Columns, select
from forgetlab.training.network import Network

EVALUATION = [name for name in dir(SupervisedPlugin) if "_eval" in name and name.startswith(("before", "after"))]


def undisturbed(plugin: Any) -> bool:
    """Whether a plug-in has no part in evaluation."""
    own = getattr(plugin, "answers_tests", None)
    unchanged = all(getattr(type(plugin), name) is getattr(SupervisedPlugin, name) for name in EVALUATION)
    return unchanged if own is None else not own


@torch.no_grad()
def answers_of_tasks(network: Network, tasks: Sequence[Columns], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each task's logits and labels, (N, C) and (N,); batches of ``size`` run over the tasks' ends."""
    was_training = network.training
    network.eval()
    waiting: list[Tensor] = []
    for fields in _batches(tasks, size):
        x, _, task = fields
        waiting.append(network(x, task))
    logits = torch.cat(waiting).split([len(y) for _, y, _ in tasks])
    network.train(was_training)
    return zip(logits, (y for _, y, _ in tasks), strict=True)


def _batches(tasks: Sequence[Columns], size: int) -> Iterator[Columns]:
    """Slices of all tasks' rows, one behind the other."""
    parts: list[Columns] = []
    free = size
    for columns in tasks:
        rows = torch.arange(len(columns[1]), device=columns[1].device)
        while len(rows):
            parts.append(select(columns, rows[:free]))
            free -= len(parts[-1][1])
            rows = rows[len(parts[-1][1]) :]
            if not free:
                yield _joined(parts)
                parts, free = [], size
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[Columns]) -> Columns:
    x, y, task = (torch.cat(column) for column in zip(*parts, strict=True))
    return x, y, task
