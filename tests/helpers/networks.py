"""Small networks that begin with equal weights wherever they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from forgetlab.backbones.mlp import MLP
from forgetlab.checks import isolation
from forgetlab.checks.backbones import tiny
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.training.network import Network, SharedNetwork

Net = TypeVar("Net", bound=Network)


def bare(outputs: int = 6, hidden: int = 16) -> nn.Module:
    """Two layers on 6 features, as plain PyTorch has them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def network(shape: tuple[int, ...] = (4,), hidden: tuple[int, ...] = (5,), **options: Any) -> SharedNetwork:
    """A perceptron that all tasks share, no task opened."""
    torch.manual_seed(0)
    return SharedNetwork(MLP(shape, hidden), **options)


def opened(model: Net, tasks: int) -> Net:
    """The network, its first tasks opened with two classes each."""
    for task in range(tasks):
        model.open(task, [2 * task, 2 * task + 1])
    return model


def isolated(
    make: Callable[[], Isolation],
    tasks: int = 0,
    family: str = "vit",
    task_known: bool = True,
    steps: int = isolation.STEPS,
) -> IsolatedNetwork:
    """A tiny backbone with a module for each task, its first tasks trained for some steps each."""
    model = IsolatedNetwork(tiny(family), make, task_known=task_known)
    for task in range(tasks):
        isolation.train(model, task, steps)
    return model
