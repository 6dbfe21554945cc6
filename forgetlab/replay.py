"""Replay: a memory of old samples that are trained on again beside the new ones.

A method is a final subclass of `Memory` (what is kept and drawn) or of `Rehearsal` (the loss on what was drawn, where
that is not the plain cross-entropy). The contract owns Avalanche's hooks, so a memory also runs in an Avalanche script.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche_api import SupervisedPlugin
from forgetlab.batch import Batch
from forgetlab.network import MASK
from forgetlab.seeding import generator

__all__ = ["MASK", "Batch", "Memory", "Rehearsal", "Slots"]


class Slots:
    """A fixed number of places for samples, as tensors on the run's device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.filled = 0
        self.tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.filled

    def write(self, places: Tensor, batch: Batch) -> None:
        """Put sample i of the batch into places[i]; places may lie at most at the end of what is filled.

        Logits get wider as classes come: those of samples that are here already are filled up with MASK.
        """
        for name, value in {"x": batch.x, "y": batch.y, "task": batch.task, **batch.extra}.items():
            kept = self.tensors.get(name)
            if kept is None:
                kept = value.new_zeros((self.capacity, *value.shape[1:]))
            elif kept.shape[1:] != value.shape[1:]:
                kept = F.pad(kept, (0, value.shape[-1] - kept.shape[-1]), value=MASK)
            kept[places] = value.detach()
            self.tensors[name] = kept
        if len(places):
            self.filled = max(self.filled, int(places.max()) + 1)

    def keep_highest(self, batch: Batch, key: Tensor) -> None:
        """Of what is here and the batch, keep the samples with the highest keys of each class, in equal shares."""
        here, y, keys = self.filled, batch.y, key
        if here:
            y, keys = torch.cat([self.tensors["y"][:here], y]), torch.cat([self.tensors["key"][:here], key])
        stays = highest_of_each(y, keys, self.capacity)
        new, gone = stays[here:].nonzero().squeeze(1), (~stays[:here]).nonzero().squeeze(1)
        places = torch.cat([gone, torch.arange(here, self.capacity, device=y.device)])[: len(new)]
        self.write(places, batch._replace(extra={**batch.extra, "key": key}).rows(new))

    def read(self, places: Tensor) -> Batch:
        """The samples in these places."""
        rows = {name: tensor[places] for name, tensor in self.tensors.items()}
        return Batch(rows.pop("x"), rows.pop("y"), rows.pop("task"), rows)


class Rehearsal(ABC):
    """The loss on new and drawn samples, where it is not the cross-entropy over both."""

    keeps_logits: ClassVar[bool] = False  # whether samples are to be stored with their logits of that moment

    @abstractmethod
    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        """A scalar; ``output`` holds the logits of the new samples, then of the drawn ones."""


class Memory(SupervisedPlugin, ABC):
    """Joins drawn samples to each incoming batch, and keeps some of the incoming ones.

    The incoming batch alone is stored, never what was drawn; a task's samples pass by once, in its first epoch, however
    long it is trained; but again in every epoch where their logits are kept, which are to be those of the whole way.
    ``draw`` is the number of old samples per step, by default as many as there are new ones.
    """

    def __init__(self, capacity: PositiveInt, draw: PositiveInt | None = None) -> None:
        super().__init__()
        self.slots, self.draw = Slots(capacity), draw
        self.rehearsal: Rehearsal | None = None
        self.seed = 0
        self.replayed = 0  # samples drawn in this task
        self._generator = generator("memory", self.seed, 0)
        self._incoming: Batch | None = None
        self._drawn: Batch | None = None

    @abstractmethod
    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        """Keep some of the incoming samples, with what is in ``batch.extra``; ``output`` are their logits."""

    def sample(self, n: int, generator: Generator) -> Batch:
        """Draw n different samples, each set equally likely, or all where there are fewer."""
        places = torch.randperm(len(self.slots), generator=generator)[:n]
        return self.slots.read(places.to(self.slots.tensors["y"].device))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept: tensors and plain values."""
        return dict(self.slots.tensors), {"filled": self.slots.filled}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.slots.tensors, self.slots.filled = dict(tensors), values["filled"]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._generator = generator("memory", self.seed, strategy.clock.train_exp_counter)
        self.replayed = 0

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        fields = strategy.mbatch
        x, y, task = fields[0], fields[1], fields[-1] if len(fields) > 2 else torch.zeros_like(fields[1])
        self._incoming, self._drawn = Batch(x, y, task), None
        if len(self.slots):
            self._drawn = self.sample(self.draw or len(y), self._generator)
            self.replayed += len(self._drawn.y)
            drawn = self._drawn
            joined = [torch.cat(pair) for pair in ((x, drawn.x), (y, drawn.y), (task, drawn.task))]
            strategy.mbatch = joined[: len(fields)]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.rehearsal is not None and self._drawn is not None and self._incoming is not None:
            x, n = strategy.mbatch[0], len(self._incoming.y)  # what the model saw: augmented, where that is asked for
            new, drawn = self._incoming._replace(x=x[:n]), self._drawn._replace(x=x[n:])
            strategy.loss = self.rehearsal.loss(strategy.model, new, drawn, strategy.mb_output)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        keeps_logits = self.rehearsal is not None and self.rehearsal.keeps_logits
        if self._incoming is not None and (keeps_logits or strategy.clock.train_exp_epochs == 0):
            output = strategy.mb_output[: len(self._incoming.y)].detach()
            beside = {"logits": output} if keeps_logits else {}
            self.store(self._incoming._replace(extra=beside), output, self._generator)


def highest_of_each(y: Tensor, key: Tensor, capacity: int) -> Tensor:
    """Which samples stay: of each class those with the highest keys, as many as is its share. -> (B,) of bool"""
    _, group, counts = y.unique(return_inverse=True, return_counts=True)
    share = equal_shares(counts, capacity)
    order = key.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]  # class by class, the highest key first
    rank = torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[group[order]]
    stays = torch.zeros_like(y, dtype=torch.bool)
    stays[order] = rank < share[group[order]]
    return stays


def equal_shares(counts: Tensor, capacity: int) -> Tensor:
    """How many of each class stay: equally many, or all where there are fewer; the first get what is left over.

    >>> equal_shares(torch.tensor([9, 2, 9]), 9)
    tensor([4, 2, 3])
    """
    share = torch.zeros_like(counts)
    while (room := capacity - int(share.sum())) and (open_classes := share < counts).any():
        each = room // int(open_classes.sum())
        if each:
            share = torch.minimum(share + each, counts)
        else:
            share[open_classes.nonzero().squeeze(1)[:room]] += 1
    return share
