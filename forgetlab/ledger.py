"""The price of a task, measured: what is trained, what is kept, what changes in the backbone, and what a step costs.

Three counts of "parameters" are three entries here, because they differ: a prefix trains an MLP that is not kept, a
sparse change trains every weight and keeps few, a low-rank change keeps little and moves every entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche_api import SupervisedPlugin
from forgetlab.cost import latency, measure
from forgetlab.data import TensorTask, select
from forgetlab.isolated import IsolatedNetwork
from forgetlab.isolation import Isolation
from forgetlab.network import Network
from forgetlab.ranks import changed, energy_rank, numerical_rank

SAMPLES = 8  # of a task's first ones, on which a step is measured
REPEATS = 5  # pairs of forward passes, with a module and without
STEP = ("flops_forward", "flops_backward", "saved_activation_bytes")  # of one sample in training
KEPT = ("task_bytes", "shared_bytes", "changed", "changed_share", "rank", "rank_90")
Price = dict[str, float | None]


class Ledger(SupervisedPlugin):
    """Measures one task's price around its training; stands last, so that all else is ready."""

    def __init__(self, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.steps: list[Price] = []  # of each task
        self.latency: float | None = None  # a forward pass under the module, over one of the bare backbone

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        network: Network = strategy.model
        if self.steps and not isinstance(network, IsolatedNetwork):
            self.steps.append(self.steps[-1])  # one network for all tasks: the same pass
        else:
            self.steps.append(self._step(network, _first(strategy)))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        network, first = strategy.model, _first(strategy)
        if isinstance(network, IsolatedNetwork) and self.latency is None and first is not None:
            network.eval()
            if network.speaker(network.current).siteless:
                self.latency = 1.0
                return
            self.latency = _latency(network, first[0])

    def _step(self, network: Network, first: Sequence[Tensor] | None) -> Price:
        if first is None:
            return dict.fromkeys(STEP)
        x, y, task = first
        module = network.module_of(network.current) if isinstance(network, IsolatedNetwork) else None

        def loss() -> Tensor:
            value = self.criterion(network(x, task), y)
            penalty = None if module is None else module.penalty()
            return value if penalty is None else value + penalty

        cost = measure(loss, [p for p in network.parameters() if p.requires_grad], network)
        return {name: getattr(cost, name) / len(y) for name in STEP}


def _first(strategy: Any) -> Sequence[Tensor] | None:
    """The first samples of the task in training, where they are tensors."""
    dataset = strategy.experience.dataset
    columns = dataset.columns() if isinstance(dataset, TensorTask) else None
    if columns is None:
        return None
    return select(columns, torch.arange(min(SAMPLES, len(columns[1])), device=columns[1].device))


@torch.no_grad()
def _latency(network: IsolatedNetwork, x: Tensor) -> float:
    module = network.speaker(network.current)
    return latency(lambda: network.under(module, x), lambda: network.backbone(x), REPEATS)


def kept(network: Network) -> Price:
    """What the newest task keeps, and what it changed; nothing of the kind where tasks share the network."""
    if not isinstance(network, IsolatedNetwork):
        return dict.fromkeys(KEPT)
    module = network.module_of(network.current)
    return {
        "task_bytes": byte_count(network.task_tensors(network.current)),
        "shared_bytes": byte_count(network.shared),
        **change(module, count(network.backbone)),
    }


def change(module: Isolation, backbone: int) -> Price:
    """Entries of the backbone that differ, their share of it, and the largest rank of a matrix' change.

    Nothing has changed where a module adds something beside the weights, and such a thing has no rank.
    """
    changes = module.changes()
    matrices = [tensor for tensor in changes.values() if tensor.dim() > 1]
    ranks = {"rank": [numerical_rank(m) for m in matrices], "rank_90": [energy_rank(m) for m in matrices]}
    largest = {name: max((r for r in found if r is not None), default=None) for name, found in ranks.items()}
    moved = changed(changes)
    return {"changed": moved, "changed_share": moved / backbone, **largest}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def byte_count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
