"""Cuts: a data set's rows, dealt out to tasks by class, by domain, by chunk or by transform.

A cut holds row numbers, so that what is done to it (`forgetlab.streams.modifiers`) copies no samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from forgetlab.data.datasets import Dataset
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.streams.scenario import DomainChanges, Setting


class StreamRows(NamedTuple):
    """Some of a data set's rows, in their order in the stream."""

    rows: Tensor  # (n,)
    y: Tensor  # (n,) in the stream's numbering
    change: Tensor  # (n,) which of the cut's changes acts on them

    def take(self, index: Tensor) -> StreamRows:
        return StreamRows(self.rows[index], self.y[index], self.change[index])

    def join(self, *others: StreamRows) -> StreamRows:
        return StreamRows(*(torch.cat(columns) for columns in zip(self, *others, strict=True)))


class Draft(NamedTuple):
    """A task whose samples are still to be fetched."""

    name: str
    train: StreamRows
    test: StreamRows
    validation: StreamRows | None = None


@dataclass(frozen=True)
class Cut:
    """A data set's rows, dealt out to tasks."""

    drafts: tuple[Draft, ...]
    class_names: tuple[str, ...]  # of the stream's labels
    changes: DomainChanges | None = None
    held_back: Draft | None = None


def by_class(data: Dataset, setting: Setting, order: Sequence[int], sizes: Sequence[int], held_back: int = 0) -> Cut:
    """Tasks of ``sizes`` classes each; the first ``held_back`` classes of the order stay out.

    - class-incremental: the label set grows and all seen classes compete;
    - task-incremental: the same, but the task is told at test and only its classes compete;
    - domain-incremental: a label is the position of the class within its task (van de Ven et al. 2022,
      https://doi.org/10.1038/s42256-022-00568-3), so every task has the same labels.

    Raises:
        OptionError: a domain-incremental cut is uneven.
    """
    held, order = list(order[:held_back]), list(order[held_back:])
    groups = heaps(order, sizes)
    same_labels = setting == "domain-incremental"
    if same_labels and len(set(sizes)) > 1:
        raise OptionError(f"{len(order)} classes do not divide evenly into {len(sizes)} domains", "n_tasks")
    label = {old: i if same_labels else order.index(old) for group in groups for i, old in enumerate(group)}
    drafts = tuple(_of_classes(data, group, label) for group in groups)
    names = [data.class_names[old] for old in order]
    if same_labels:
        names = ["/".join(data.class_names[group[i]] for group in groups) for i in range(sizes[0])]
    left_out = _of_classes(data, held, {old: i for i, old in enumerate(held)}) if held else None
    return Cut(drafts, tuple(names), held_back=left_out)


def by_domain(data: Dataset, groups: Sequence[Sequence[int]]) -> Cut:
    """A task for each group of domains; the labels are the data set's own."""
    assert data.domains is not None
    parts = zip(("train", "test"), data.domains, strict=True)
    rows = {part: [torch.isin(domain, torch.tensor(group)) for group in groups] for part, domain in parts}
    names = [",".join(data.domain_names[i] for i in group) for group in groups]
    drafts = [
        Draft(name, _part(data.train.y, train), _part(data.test.y, test))
        for name, train, test in zip(names, rows["train"], rows["test"], strict=True)
    ]
    return Cut(tuple(drafts), data.class_names)


def by_chunk(data: Dataset, n_tasks: int, seed: int) -> Cut:
    """Equal pieces at random: nothing differs between tasks but the samples."""

    def pieces(name: str, y: Tensor) -> list[StreamRows]:
        order = torch.randperm(len(y), generator=generator("chunks", seed, name == "test"))
        return [StreamRows(rows, y[rows], torch.zeros_like(rows)) for rows in order.tensor_split(n_tasks)]

    both = zip(pieces("train", data.train.y), pieces("test", data.test.y), strict=True)
    return Cut(tuple(Draft(f"chunk {i}", train, test) for i, (train, test) in enumerate(both)), data.class_names)


def by_transform(data: Dataset, setting: Setting, changes: DomainChanges) -> Cut:
    """All data in every task, changed in a way of its own; class-incremental: with labels of its own as well."""
    n_classes, drafts = len(data.class_names), []
    for i, name in enumerate(changes):
        first = i * n_classes if setting == "class-incremental" else 0
        every = [
            StreamRows(torch.arange(len(y)), y + first, torch.full_like(y, i)) for y in (data.train.y, data.test.y)
        ]
        drafts.append(Draft(name, *every))
    names = data.class_names
    if setting == "class-incremental":
        names = tuple(f"{name} {domain}" for domain in changes for name in data.class_names)
    return Cut(tuple(drafts), names, changes)


def heaps(items: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    return [part.tolist() for part in torch.tensor(items).split(list(sizes))]


def _of_classes(data: Dataset, group: Sequence[int], label: dict[int, int]) -> Draft:
    table = torch.tensor([label.get(old, -1) for old in range(len(data.class_names))])
    members = torch.tensor(group)
    train, test = (_part(table[y], torch.isin(y, members)) for y in (data.train.y, data.test.y))
    return Draft(",".join(data.class_names[old] for old in group), train, test)


def _part(y: Tensor, chosen: Tensor) -> StreamRows:
    rows = chosen.nonzero().squeeze(1)
    return StreamRows(rows, y[rows], torch.zeros_like(rows))
