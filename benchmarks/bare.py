"""The bare loop: what has to be computed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from forgetlab.data.datasets import as_input
from forgetlab.streams.scenario import Task

Orders = Sequence[Tensor]  # of each task's samples

LR = 1e-3


class Bare(nn.Module):
    """An MLP whose last layer gets rows as classes come."""

    def __init__(self, layers: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.layers, self.start = layers, (weight, bias)  # the start of all rows that there will be
        self.weight, self.bias = nn.Parameter(weight[:0]), nn.Parameter(bias[:0])

    def grow(self, n_classes: int) -> None:
        for name, start in zip(("weight", "bias"), self.start, strict=True):
            old = getattr(self, name).detach()
            setattr(self, name, nn.Parameter(torch.cat([old, start[len(old) : n_classes]])))

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, classes so far)"""
        return F.linear(self.layers(x), self.weight, self.bias)


def of_layers(network: Bare) -> nn.Sequential:
    """The same network, all classes open, as a chain of PyTorch's layers."""
    last = nn.Linear(network.weight.shape[1], len(network.weight))
    last.weight, last.bias = network.weight, network.bias
    return nn.Sequential(network.layers, last)


def mlp(n_inputs: int, n_classes: int, hidden: int) -> Bare:
    """PyTorch's own layers and start."""
    layers = [nn.Flatten(), nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    last = nn.Linear(hidden, n_classes)
    return Bare(nn.Sequential(*layers), last.weight.detach(), last.bias.detach())


def fused_adam(parameters: Iterator[nn.Parameter]) -> Optimizer:
    return Adam(parameters, LR, fused=True)


def default_adam(parameters: Iterator[nn.Parameter]) -> Optimizer:
    return Adam(parameters, LR)


def as_tensors(task: Task) -> tuple[Tensor, Tensor]:
    """Pixels as float32, converted once and beforehand: the bare loop has no bytes to convert in a step."""
    return as_input(task.train.x), task.train.y


def train(
    network: Bare,
    tasks: Sequence[tuple[Tensor, Tensor]],
    orders: Orders,
    batch_size: int,
    make_optimizer: Callable[[Iterator[nn.Parameter]], Optimizer] = fused_adam,
) -> None:
    """One epoch of each task, with a fresh optimizer."""
    for (x, y), order in zip(tasks, orders, strict=True):
        network.grow(int(y.max()) + 1)
        optimizer = make_optimizer(network.parameters())
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(x.index_select(0, rows)), y.index_select(0, rows)).backward()
            optimizer.step()


Labels = Callable[[Tensor], list[tuple[Tensor, Tensor | float]]]


def one_label(output: Tensor) -> list[tuple[Tensor, Tensor | float]]:
    return [(output.argmax(1), 1.0)]


def every_label(output: Tensor) -> list[tuple[Tensor, Tensor | float]]:
    weights = output.detach().softmax(1)[0]
    return [(torch.tensor([label]), weight) for label, weight in enumerate(weights)]


def fisher(model: nn.Module, data: Iterable[Sequence[Tensor]], labels: Labels) -> dict[str, Tensor]:
    """The diagonal of the Fisher information by its definition: one backward pass per sample and label.

    As van de Ven's code does it (GMvandeVen/continual-learning, estimate_fisher): ``data`` gives samples one by one,
    and ``labels`` gives, for logits (1, classes), the labels to differentiate for and their weights.
    """
    total, n = {name: torch.zeros_like(p) for name, p in model.named_parameters()}, 0
    for x, _ in data:
        output, n = model(x), n + 1
        choices = labels(output)
        for i, (label, weight) in enumerate(choices):
            model.zero_grad()
            F.cross_entropy(output, label).backward(retain_graph=i + 1 < len(choices))
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                total[name] += weight * parameter.grad.detach() ** 2
    model.zero_grad()
    return {name: value / n for name, value in total.items()}
