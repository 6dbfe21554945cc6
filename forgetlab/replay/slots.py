"""Where a memory keeps its samples: a fixed number of places, as tensors on the run's device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from forgetlab.batch import Batch
from forgetlab.data.datasets import as_input
from forgetlab.training.competing_classes import widened


class Slots:
    """A fixed number of places for samples; ``as_bytes`` where inputs are bytes, a quarter of what numbers take."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.as_bytes = False
        self.filled = 0
        self.experience: int | None = None  # kept beside each sample that comes, where it is given
        self.tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.filled

    def write(self, places: Tensor, batch: Batch) -> None:
        """Put sample i of the batch into places[i]; places may lie at most at the end of what is filled.

        Logits get wider as classes come: those of samples that are here already are widened.
        """
        x = (batch.x * 255).round().to(torch.uint8) if self.as_bytes else batch.x
        columns = {"x": x, "y": batch.y, "task": batch.task, **batch.extra, **self._mark(batch)}
        for name, value in columns.items():
            kept = self.tensors.get(name)
            if kept is None:
                kept = value.new_zeros((self.capacity, *value.shape[1:]))
            elif kept.shape[1:] != value.shape[1:]:
                kept = widened(kept, value.shape[-1])
            kept[places] = value.detach()
            self.tensors[name] = kept
        if len(places):
            self.filled = max(self.filled, int(places.max()) + 1)

    def _mark(self, batch: Batch) -> dict[str, Tensor]:
        return {} if self.experience is None else {"experience": torch.full_like(batch.y, self.experience)}

    def keep_highest(self, batch: Batch, key: Tensor, of: Literal["class", "task"] = "class") -> None:
        """Of what is here and the batch, keep the samples with the highest keys of each, in equal shares.

        A task is told from another by its experience where that is kept: in some streams all carry the same task.
        """
        name = "y" if of == "class" else "task" if self.experience is None else "experience"
        group = {"y": batch.y, "task": batch.task, **self._mark(batch)}[name]
        here, keys = self.filled, key
        if here:
            group, keys = torch.cat([self.tensors[name][:here], group]), torch.cat([self.tensors["key"][:here], key])
        stays = highest_of_each(group, keys, self.capacity)
        new, gone = stays[here:].nonzero().squeeze(1), (~stays[:here]).nonzero().squeeze(1)
        places = torch.cat([gone, torch.arange(here, self.capacity, device=group.device)])[: len(new)]
        self.write(places, batch._replace(extra={**batch.extra, "key": key}).rows(new))

    def read(self, places: Tensor) -> Batch:
        """The samples in these places."""
        rows = {name: tensor[places] for name, tensor in self.tensors.items()}
        return Batch(as_input(rows.pop("x")), rows.pop("y"), rows.pop("task"), rows)


def highest_of_each(group_of: Tensor, key: Tensor, capacity: int) -> Tensor:
    """Which samples stay: of each group those with the highest keys, as many as is its share. -> (B,) of bool"""
    _, group, counts = group_of.unique(return_inverse=True, return_counts=True)
    share = equal_shares(counts, capacity)
    order = key.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]  # class by class, the highest key first
    rank = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
    stays = torch.zeros_like(group, dtype=torch.bool)
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
