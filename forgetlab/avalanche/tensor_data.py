"""Tensors all the way: ForgetLab's streams as Avalanche benchmarks whose batches are sliced, never assembled.

Avalanche fetches sample by sample through nested datasets. `TensorTask` is one of its datasets, survives its
``train``, ``subset`` and ``concat``, and yields whole batches from the tensors below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from forgetlab.avalanche.api import (
    CLExperience,
    CLScenario,
    DataAttribute,
    FlatData,
    TaskAwareSupervisedClassificationDataset,
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.data.datasets import Samples, as_input
from forgetlab.data.mapped_rows import Rows
from forgetlab.streams.scenario import Scenario

Columns = tuple[Tensor, Tensor, Tensor]  # x (N, ...), y (N,), task (N,)
LISTED = 4096  # numbers that are objects at a time


class Fetched(Sequence[list[Tensor]]):
    """A fetched batch that is whole for our collate function and a list of samples for any other."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[1])

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return [column[index] for column in self.columns]


def collate(samples: Any) -> list[Tensor]:
    """A batch as Avalanche's loop takes it: [x, y, task]; labels of others may be numbers where ours are tensors."""
    if isinstance(samples, Fetched):
        return list(samples.columns)
    return default_collate([[torch.as_tensor(field) for field in sample] for sample in samples])


class Inputs(TensorDataset):
    """Tensors whose samples are what a model is given."""

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return as_input(x), y


class Numbers(Sequence[int]):
    """A tensor as a sequence of whole numbers; a list of them would hold each as an object."""

    __hash__ = None  # type: ignore[assignment]  # as a list has none: Avalanche looks for twins among what has one

    def __init__(self, values: Tensor) -> None:
        self.values, self._array = values, values.numpy()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return Numbers(self.values[index]) if isinstance(index, slice) else self._array[index].item()

    def __iter__(self) -> Iterator[int]:
        for some in self.values.split(LISTED):
            yield from some.tolist()


class Labels(DataAttribute):
    """A data attribute of numbers, which tells the different ones at once; Avalanche's own looks at each sample."""

    def __init__(self, data: Any, name: str, use_in_getitem: bool = False) -> None:
        super().__init__(Numbers(data.cpu()) if isinstance(data, Tensor) else data, name, use_in_getitem)

    @property
    def uniques(self) -> set[int]:
        if self._uniques is None:
            self._uniques = set(_values(self.data).unique().tolist())
        return self._uniques

    def subset(self, indices: Any) -> Labels:
        return Labels(self.data.subset(indices), self.name, self.use_in_getitem)

    def concat(self, other: Any) -> Labels:
        return Labels(self.data.concat(other.data), self.name, self.use_in_getitem)


class TensorTask(TaskAwareSupervisedClassificationDataset):
    """An Avalanche dataset over tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.collate_fn = collate
        self._columns: Columns | None = None

    @classmethod
    def of(cls, samples: Samples, task: int, device: torch.device | str = "cpu") -> TensorTask:
        """One task's samples; ``task`` is UNKNOWN where the learner is not told."""
        tasks = torch.tensor(task).expand(len(samples.y))
        attributes = [Labels(samples.y, "targets"), Labels(tasks, "targets_task_labels", use_in_getitem=True)]
        tensors = Inputs(samples.x.to(device), samples.y.to(device))
        return cls([tensors], data_attributes=attributes)

    def columns(self) -> Columns | None:
        """All rows as three tensors; None where a plug-in mixed in data that is not ours."""
        if self._columns is None:
            below = _gather(self._flat_data, self._flat_data._transform_groups.current_group)
            if below is not None:
                self._columns = (*below, _values(self.targets_task_labels.data).to(below[1].device))
        return self._columns

    def __getitems__(self, indices: list[int]) -> Any:
        columns = self.columns()
        if columns is None:
            return [self[i] for i in indices]
        rows = torch.tensor(indices, device=columns[1].device)
        return Fetched(select(columns, rows))

    def with_transforms(self, group_name: str) -> TensorTask:
        """Keeps the gathered columns where no transform begins to act."""
        changed = super().with_transforms(group_name)
        if not _has_transforms(changed._flat_data, group_name):
            changed._columns = self._columns
        return changed

    def _shallow_clone_dataset(self) -> TensorTask:
        """Avalanche's copy before each change."""
        copy = super()._shallow_clone_dataset()
        copy._columns = None
        return copy


def select(columns: Columns, rows: Tensor) -> Columns:
    """The rows of three columns."""
    x, y, task = columns
    return as_input(x.index_select(0, rows)), y.index_select(0, rows), task.index_select(0, rows)


def _gather(flat: Any, group: str) -> tuple[Tensor, Tensor] | None:
    """x and y below one of Avalanche's flattened datasets, or None where anything else is below it."""
    if type(flat) is Inputs:  # any other may give other samples than its tensors
        return flat.tensors[0], flat.tensors[1]
    if not isinstance(flat, FlatData) or _own_transforms(flat, group):
        return None
    parts = [_gather(part, group) for part in flat._datasets]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    x, y = known[0] if len(known) == 1 else (torch.cat(column) for column in zip(*known, strict=True))
    if flat._indices is None:
        return x, y
    rows = torch.tensor(list(flat._indices), dtype=torch.int64, device=y.device)
    return (x[rows] if isinstance(x, Rows) else x.index_select(0, rows)), y.index_select(0, rows)


def _values(attribute: Any) -> Tensor:
    """What a flattened data attribute holds; Avalanche's own iteration walks down to the lists for each value."""
    if isinstance(attribute, Numbers):
        return attribute.values
    if not isinstance(attribute, FlatData):
        return torch.tensor(list(attribute))
    whole = torch.cat([_values(part) for part in attribute._datasets] or [torch.empty(0, dtype=torch.int64)])
    return whole if attribute._indices is None else whole[torch.tensor(list(attribute._indices), dtype=torch.int64)]


def _has_transforms(flat: Any, group: str) -> bool:
    """Whether a transform acts on any sample; the group of the outermost dataset holds for all below."""
    return _own_transforms(flat, group) or any(_has_transforms(part, group) for part in getattr(flat, "_datasets", ()))


def _own_transforms(flat: Any, group: str) -> bool:
    own = [getattr(flat, name, None) for name in ("_transform_groups", "_frozen_transform_groups")]
    transforms = [groups[group] for groups in own if groups is not None]
    return any(transform is not None and len(getattr(transform, "transforms", [1])) for transform in transforms)


class TensorLoader:
    """Batches sliced from tensors, in a new order each epoch where orders are given, else in their own.

    With ``no_single`` a last batch of one sample is joined to the batch before it: `forgetlab.backbones.batch_norm`.
    """

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        orders: Callable[[int], torch.Generator] | None = None,
        *,
        no_single: bool = False,
        drop_last: bool = False,
    ) -> None:
        self.no_single = no_single
        self.drop_last = drop_last  # a last batch that is not full is left out
        self.columns, self.batch_size, self.orders = columns, batch_size, orders
        self.epoch = 0
        self.rows = torch.empty(0, dtype=torch.int64)  # of the columns: those in the batch at hand

    def __len__(self) -> int:
        batches = len(self.columns[1]) / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches) - self._joins_the_last()

    def _joins_the_last(self) -> bool:
        samples = len(self.columns[1])
        single = samples > self.batch_size > 1 and samples % self.batch_size == 1
        return self.no_single and not self.drop_last and single

    def __iter__(self) -> Iterator[list[Tensor]]:
        n, device = len(self.columns[1]), self.columns[1].device
        if self.orders is None:
            order = torch.arange(n, device=device)
        else:
            order = torch.randperm(n, generator=self.orders(self.epoch)).to(device)
            self.epoch += 1
        if self.drop_last:
            order = order[: len(self) * self.batch_size]
        of_batches = list(order.split(self.batch_size))
        if self._joins_the_last():
            single = of_batches.pop()
            of_batches[-1] = torch.cat([of_batches[-1], single])
        for rows in of_batches:
            self.rows = rows
            yield list(select(self.columns, rows))


def batches(dataset: Any, batch_size: int, device: torch.device | str) -> Iterator[Batch]:
    """A dataset in order, as batches; whole slices where it is ours."""
    columns = dataset.columns() if isinstance(dataset, TensorTask) else None
    if columns is not None:
        loader: Any = TensorLoader(columns, batch_size)
    else:
        collate_fn = getattr(dataset, "collate_fn", None)
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, collate_fn=collate_fn)
    for fields in loader:
        x, y, task = (field.to(device) for field in (fields[0], fields[1], fields[-1]))
        yield Batch(x, y, task if len(fields) > 2 else torch.zeros_like(y))


def to_benchmark(scenario: Scenario, device: torch.device | str = "cpu", told: bool | None = None) -> CLScenario:
    """The stream as an Avalanche benchmark.

    Test samples carry their task only where it is told, by default where the setting tells it; elsewhere UNKNOWN.
    """
    told = scenario.task_known_at_test if told is None else told
    train = [
        TensorTask.of(task.train, i if scenario.boundaries_known else UNKNOWN, device)
        for i, task in enumerate(scenario.tasks)
    ]
    test = [TensorTask.of(task.test, i if told else UNKNOWN, device) for i, task in enumerate(scenario.tasks)]
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=train, test=test)))


def together(datasets: Sequence[TensorTask]) -> CLExperience:
    """Several tasks as one training experience; every sample keeps its task."""
    whole = datasets[0]
    for dataset in datasets[1:]:
        whole = whole.concat(dataset)
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=[whole])))
    return benchmark.streams["train"][0]


@dataclass(frozen=True)
class Source:
    """Where the batch at hand lies: rows of a data set's inputs."""

    x: Tensor  # (N, ...) all of them
    rows: Tensor  # (B,)

    def take(self, index: Tensor) -> Source:
        return Source(self.x, self.rows[index])

    @classmethod
    def all(cls, x: Tensor) -> Source:
        return cls(x, torch.arange(len(x), device=x.device))
