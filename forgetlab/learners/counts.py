"""The price of a run, counted task by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from forgetlab.avalanche.api import held_bytes
from forgetlab.costs.ledger import KEPT, STEP, Price, byte_count
from forgetlab.training.loop import TensorPath


@dataclass
class Counts:
    """The price, task by task."""

    parameters: int = 0  # that must be kept to answer
    stored_bytes: int = 0  # that must be kept to answer
    memory_bytes: int | None = 0  # that are kept beside, to learn on: buffers, importances; None where not known
    trainable: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    extra_updates: list[int] = field(default_factory=list)  # of networks beside the one that answers: a generator's
    samples_seen: list[int] = field(default_factory=list)
    samples_replayed: list[int] = field(default_factory=list)
    backbone_parameters: int | None = None
    prices: list[Price] = field(default_factory=list)  # of each task, see `forgetlab.costs.ledger`

    def add(self, loop: TensorPath, replayed: int = 0, extra_updates: int = 0) -> None:
        """The task that this loop trained last, with what its plug-ins drew beside, and took steps of their own."""
        parameters = [p for group in loop.optimizer.param_groups for p in group["params"]]
        self.trainable.append(sum(p.numel() for p in parameters))
        self.updates.append(loop.steps)
        self.extra_updates.append(extra_updates)
        self.samples_seen.append(loop.seen)
        self.samples_replayed.append(replayed)

    def keep(self, tensors: Mapping[str, Tensor], copies: int = 1) -> None:
        """What must be kept to answer."""
        self.parameters = copies * sum(t.numel() for t in tensors.values() if t.is_floating_point())
        self.stored_bytes = copies * byte_count(tensors)

    def as_plain(self) -> dict[str, Any]:
        names = ("trainable", "updates", "extra_updates", "samples_seen", "samples_replayed")
        per_task = {name: getattr(self, name) for name in names}
        total = {name: sum(values) for name, values in per_task.items() if name != "trainable"}
        total["trainable"] = max(self.trainable, default=0)
        kept = ("parameters", "stored_bytes", "memory_bytes", "backbone_parameters")
        totals = {name: getattr(self, name) for name in kept}
        prices = {name: [price[name] for price in self.prices] for name in (*STEP, *KEPT) if self.prices}
        rows = {name: list(values) for name, values in per_task.items()}
        return {"per_task": {**rows, **prices}, "total": {**total, **totals}}


def memory_bytes(keepers: list[Any], model: nn.Module) -> int | None:
    """The bytes of the tensors in their states, and of what stock code holds; None where one does not tell."""
    sizes = [byte_count(k.state()[0]) if hasattr(k, "state") else held_bytes(k, model) for k in keepers]
    return None if None in sizes else sum(size for size in sizes if size is not None)
