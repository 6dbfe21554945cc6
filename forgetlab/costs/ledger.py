"""The price of a task, measured: what is trained, what is kept, what changes in the backbone, and what a step costs.

Three counts of "parameters" are three entries here, because they differ: a prefix trains an MLP that is not kept, a
sparse change trains every weight and keeps few, a low-rank change keeps little and moves every entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import TensorTask, select
from forgetlab.costs.rank_of_change import changed, energy_rank, numerical_rank
from forgetlab.costs.training_step import latency, measure
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.isolation.shared_module import Adapted
from forgetlab.training.network import Network

SAMPLES = 8  # of a task's first ones, on which a step is measured
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
        module = at_work(network)
        if module is not None and self.latency is None and first is not None:
            network.eval()
            self.latency = 1.0 if module.siteless else _latency(network, module, first[0])

    def _step(self, network: Network, first: Sequence[Tensor] | None) -> Price:
        if first is None:
            return dict.fromkeys(STEP)
        x, y, task = first
        module = in_training(network)

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


def in_training(network: Network) -> Isolation | None:
    """What is trained on a frozen backbone: the newest task's module, or the one that all tasks share."""
    if isinstance(network, IsolatedNetwork):
        return network.module_of(network.current)
    return network.backbone.module if isinstance(network.backbone, Adapted) else None


def at_work(network: Network) -> Isolation | None:
    """What answers for the newest task on a frozen backbone."""
    return network.speaker(network.current) if isinstance(network, IsolatedNetwork) else in_training(network)


@torch.no_grad()
def _latency(network: Network, module: Isolation, x: Tensor) -> float:
    if isinstance(network, IsolatedNetwork):
        return latency(lambda: network.under(module, x), lambda: network.backbone(x))
    adapted: Any = network.backbone
    return latency(lambda: adapted(x), lambda: adapted.backbone(x))


def kept_by_task(network: Network) -> Price:
    """What the newest task keeps, and what it changed; nothing of the kind where no backbone is frozen."""
    module, backbone = in_training(network), network.backbone
    if module is None:
        return dict.fromkeys(KEPT)
    if isinstance(network, IsolatedNetwork):
        task, shared = byte_count(network.task_tensors(network.current)), byte_count(network.shared)
    else:  # one module and one head for all tasks
        backbone = backbone.get_submodule("backbone")
        task, shared = 0, byte_count(network.stored()) - byte_count(backbone.state_dict())
    return {"task_bytes": task, "shared_bytes": shared, **change(module, count(backbone))}


def change(module: Isolation, backbone: int) -> Price:
    """Entries of the backbone that differ, their share of it, and the largest rank of a matrix' change.

    What a module adds beside the weights changes none of them, and has no rank.
    """
    changes = module.changed_weights()
    matrices = [tensor for tensor in changes.values() if tensor.dim() > 1]
    ranks = {"rank": [numerical_rank(m) for m in matrices], "rank_90": [energy_rank(m) for m in matrices]}
    largest = {name: max((r for r in found if r is not None), default=None) for name, found in ranks.items()}
    moved = changed(changes)
    return {"changed": moved, "changed_share": moved / backbone, **largest}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def byte_count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
