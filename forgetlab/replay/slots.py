"""Where a memory keeps its samples, as tensors on the run's device: as many places as samples have come to fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from forgetlab.batch import Batch
from forgetlab.data.datasets import as_input
from forgetlab.training.competing_classes import widened

Group = Literal["class", "task"]
UNBOUNDED = 2**62  # as many places as samples come; a number that still fits where places are counted


class Slots:
    """Places for samples; ``as_bytes`` where inputs are bytes, a quarter of what numbers take.

    How many may be filled is told in one of three ways: ``capacity``, of all samples; ``each``, of every class or
    task, so that the places grow with these; ``share``, of the samples that came of a class or task (`note`).
    """

    def __init__(self, capacity: int | None = None, *, each: int | None = None, share: float | None = None) -> None:
        self.capacity = min(UNBOUNDED if capacity is None else capacity, UNBOUNDED)
        self.each = each
        self.share = share
        self.as_bytes = False
        self.filled = 0
        self.experience: int | None = None  # kept beside each sample that comes, where it is given
        self.tensors: dict[str, Tensor] = {}  # more places than are filled: the next samples do not move those here
        self.came: dict[int, int] = {}  # samples of each group that came by, where a share of them is kept

    def __len__(self) -> int:
        return self.filled

    @property
    def grows(self) -> bool:
        """Whether there are more places as classes or tasks come."""
        return self.each is not None or self.share is not None

    def kept(self) -> dict[str, Tensor]:
        """The samples alone, without the places that wait."""
        return {name: tensor[: self.filled] for name, tensor in self.tensors.items()}

    def write(self, places: Tensor, batch: Batch) -> None:
        """Put sample i of the batch into places[i]; places may lie at most at the end of what is filled.

        Logits get wider as classes come: those of samples that are here already are widened.
        """
        x = (batch.x * 255).round().to(torch.uint8) if self.as_bytes else batch.x
        columns = {"x": x, "y": batch.y, "task": batch.task, **batch.extra, **self._mark(batch)}
        needed = max(self.filled, int(places.max()) + 1) if len(places) else self.filled
        for name, value in columns.items():
            kept = self.tensors.get(name)
            if kept is None:
                kept = value.new_zeros((0, *value.shape[1:]))
            elif kept.shape[1:] != value.shape[1:]:
                kept = widened(kept, value.shape[-1])
            kept = self._with_room(kept, needed)
            kept[places] = value.detach()
            self.tensors[name] = kept
        self.filled = needed

    def _with_room(self, kept: Tensor, needed: int) -> Tensor:
        """The same rows among as many as are needed: twice as many each time, never more than may be filled."""
        if needed <= len(kept):
            return kept
        places = max(needed, min(2 * len(kept), self.capacity))
        return torch.cat([kept, kept.new_zeros((places - len(kept), *kept.shape[1:]))])

    def _mark(self, batch: Batch) -> dict[str, Tensor]:
        return {} if self.experience is None else {"experience": torch.full_like(batch.y, self.experience)}

    def _groups(self, of: Group) -> str:
        """The column that tells the groups apart.

        A task is told from another by its experience where that is kept: in some streams all carry the same task.
        """
        if of == "class":
            return "y"
        return "task" if self.experience is None else "experience"

    def note(self, batch: Batch, of: Group = "class") -> None:
        """Count the samples that come by, where a ``share`` of them is kept."""
        if self.share is None:
            return
        group = {"y": batch.y, "task": batch.task, **self._mark(batch)}[self._groups(of)]
        for label, count in zip(*_counted(group), strict=True):
            self.came[label] = self.came.get(label, 0) + count

    def room(self, groups: Tensor, counts: Tensor) -> Tensor:
        """How many samples stay of each group, which has so many: both (G,). -> (G,)"""
        if self.each is not None:
            return counts.clamp(max=self.each)
        if self.share is not None:
            most = [max(1, round(self.share * self.came[label])) for label in groups.tolist()]
            return torch.minimum(counts, counts.new_tensor(most))
        return equal_shares(counts, self.capacity)

    def keep_highest(self, batch: Batch, key: Tensor, of: Group = "class") -> None:
        """Of what is here and the batch, keep the samples with the highest keys of each class or task."""
        name = self._groups(of)
        group = {"y": batch.y, "task": batch.task, **self._mark(batch)}[name]
        here, keys = self.filled, key
        if here:
            group, keys = torch.cat([self.tensors[name][:here], group]), torch.cat([self.tensors["key"][:here], key])
        stays = self._highest(group, keys)
        new, gone = stays[here:].nonzero().squeeze(1), (~stays[:here]).nonzero().squeeze(1)
        places = torch.cat([gone, torch.arange(here, here + len(new), device=group.device)])[: len(new)]
        self.write(places, batch._replace(extra={**batch.extra, "key": key}).rows(new))

    def _highest(self, group_of: Tensor, key: Tensor) -> Tensor:
        """Which samples stay: of each group those with the highest keys, as many as have room. -> (B,) of bool"""
        groups, group, counts = group_of.unique(return_inverse=True, return_counts=True)
        most = self.room(groups, counts)
        order = key.argsort(descending=True, stable=True)
        order = order[group[order].argsort(stable=True)]  # group by group, the highest key first
        rank = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
        stays = torch.zeros_like(group, dtype=torch.bool)
        stays[order] = rank < most[group[order]]
        return stays

    def read(self, places: Tensor) -> Batch:
        """The samples in these places."""
        rows = {name: tensor[places] for name, tensor in self.tensors.items()}
        return Batch(as_input(rows.pop("x")), rows.pop("y"), rows.pop("task"), rows)


def _counted(group: Tensor) -> tuple[Sequence[int], Sequence[int]]:
    labels, counts = group.unique(return_counts=True)
    return labels.tolist(), counts.tolist()


def equal_shares(counts: Tensor, capacity: int) -> Tensor:
    """How many of each class stay: equally many, or all where there are fewer; the first get what is left over.

    >>> equal_shares(torch.tensor([9, 2, 9]), 9)
    tensor([4, 2, 3])
    """
    share = torch.zeros_like(counts)
    capacity = min(capacity, int(counts.sum()))
    while (room := capacity - int(share.sum())) and (open_classes := share < counts).any():
        each = room // int(open_classes.sum())
        if each:
            share = torch.minimum(share + each, counts)
        else:
            share[open_classes.nonzero().squeeze(1)[:room]] += 1
    return share
