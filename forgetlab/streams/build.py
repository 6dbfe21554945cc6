"""A data set cut into tasks as a scenario file says, with what the learner is told.

`forgetlab.streams.cuts` deals rows out to tasks, `forgetlab.streams.modifiers` changes what was dealt, `assemble`
fetches the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag

from forgetlab.data.datasets import Dataset, Samples
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError, Spec, suggestion
from forgetlab.seeding import generator
from forgetlab.streams.cuts import Cut, Draft, StreamRows, by_chunk, by_class, by_domain, by_transform, heaps
from forgetlab.streams.scenario import DomainChanges, Scenario, Setting, Task

By = Literal["class", "domain", "chunk", "transform"]

TASKS = 5  # unless a file says otherwise


class NumpyOrder(BaseModel):
    """The order that numpy draws by its legacy generator, which stays the same in every version.

    That of ``numpy.random.seed(1993); numpy.random.permutation(100)``, by which PyCIL, FACIL and LAMDA's toolboxes
    order the classes of CIFAR-100, begins 68, 56, 78, 8, 23. It is the same for every seed of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    numpy_seed: Annotated[int, Field(ge=0, lt=2**32)]

    def of(self, n: int) -> list[int]:
        """The places 0 to n - 1, each once."""
        return np.random.RandomState(self.numpy_seed).permutation(n).tolist()


def _form(order: object) -> str:
    """Which form of an order a value is meant to be, so that a wrong one is told what is wrong with that form alone."""
    if isinstance(order, str):
        return "[word]"
    return "[drawn by numpy]" if isinstance(order, Mapping | NumpyOrder) else "[list]"


Order = Annotated[
    Annotated[Literal["given", "drawn"], Tag("[word]")]
    | Annotated[NumpyOrder, Tag("[drawn by numpy]")]
    | Annotated[tuple[int | str, ...], Tag("[list]")],
    Discriminator(_form),
]


class FewShot(BaseModel):
    """A large first task, then tasks of few samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base_classes: PositiveInt
    shots: PositiveInt  # samples of each later class


def cut(
    data: Dataset,
    seed: int,
    setting: Setting,
    by: By | None = None,
    n_tasks: int | None = None,
    transform: Spec | None = None,
    class_order: Order = "drawn",
    task_order: Order = "given",
    classes_per_task: Sequence[int] | None = None,
    held_back: int = 0,
    base_classes: int | None = None,
) -> Cut:
    """Tasks from a data set, by what the options say or suggest.

    Raises:
        OptionError: options that have no meaning together, or that the data set cannot meet.
    """
    by = by or _suggested(data, setting, transform)
    _refuse_meaningless(data, setting, by, transform)
    if by != "class":
        of_classes = {"classes_per_task": classes_per_task, "held_back": held_back, "few_shot": base_classes}
        for option in [option for option, value in of_classes.items() if value]:
            raise OptionError(f"{option!r} is for tasks of different classes; these are cut by {by}", option)
    if by == "chunk":
        return by_chunk(data, n_tasks or TASKS, seed)
    if by == "transform":
        changes = _changes(transform or "", n_tasks or TASKS, seed)
        names = list(changes)
        order = ordered(names, task_order, seed, "task_order")
        return by_transform(data, setting, {names[i]: changes[names[i]] for i in order})
    if by == "domain":
        order = ordered(data.domain_names, task_order, seed, "task_order")
        return by_domain(data, heaps(order, even_sizes(len(order), n_tasks or len(order), "domains")))
    order = ordered(data.class_names, class_order, seed, "class_order")
    sizes = _sizes(len(order), n_tasks, classes_per_task, held_back, base_classes)
    groups = heaps(order[held_back:], sizes)
    groups = [groups[i] for i in ordered([f"task {i}" for i in range(len(groups))], task_order, seed, "task_order")]
    order = order[:held_back] + [old for group in groups for old in group]
    return by_class(data, setting, order, [len(group) for group in groups], held_back)


def refuse_beside_told_tasks(setting: Setting, **chosen: object) -> None:
    """
    Raises:
        OptionError: a choice that mixes tasks, where every sample's task is told.
    """
    for option in [option for option, value in chosen.items() if value and setting == "task-incremental"]:
        raise OptionError(f"{option!r} has no meaning where every class belongs to one task, which is told", option)


def _suggested(data: Dataset, setting: Setting, transform: Spec | None) -> By:
    if setting == "data-incremental":
        return "chunk"
    if transform is not None:
        return "transform"
    return "domain" if setting == "domain-incremental" and data.domains is not None else "class"


def _refuse_meaningless(data: Dataset, setting: Setting, by: By, transform: Spec | None) -> None:
    _refuse_chunks(setting, by)
    if (by == "transform") != (transform is not None):
        raise OptionError(f"'by: transform' and a 'transform' go together, not 'by: {by}'", "by")
    if by == "domain" and data.domains is None:
        raise OptionError("the data set does not tell what its rows come from, so there are no domains", "by")


def _refuse_chunks(setting: Setting, by: By) -> None:
    if (by == "chunk") != (setting == "data-incremental"):
        raise OptionError(f"'setting: data-incremental' goes with 'by: chunk', not {setting} with {by}", "by")


def _changes(transform: Spec, n_tasks: int, seed: int) -> DomainChanges:
    spec = {"name": transform} if isinstance(transform, str) else transform
    options = {key: value for key, value in spec.items() if key != "name"}
    return registry.build("transform", spec["name"], options, seed=seed, n_tasks=n_tasks)


def _sizes(
    n_classes: int, n_tasks: int | None, classes_per_task: Sequence[int] | None, held_back: int, base: int | None
) -> list[int]:
    left = n_classes - held_back
    kept = f"classes ({held_back} of {n_classes} are held back)" if held_back else "classes"
    if classes_per_task is not None:
        if sum(classes_per_task) != left or n_tasks not in (None, len(classes_per_task)):
            told = f"{len(classes_per_task)} tasks of {sum(classes_per_task)} classes together; there are {left} {kept}"
            raise OptionError(told, "classes_per_task")
        return list(classes_per_task)
    if base is not None:
        if base >= left:
            raise OptionError(f"{base} base classes of {left} leave none for later tasks", "few_shot")
        return [base, *even_sizes(left - base, (n_tasks or TASKS) - 1, f"classes after the first {base}")]
    return even_sizes(left, n_tasks or TASKS, kept)


def ordered(names: Sequence[str], order: Order, seed: int, what: str) -> list[int]:
    """The places of ``names`` in an order that is given, drawn by the seed or by numpy, or listed (by name or place).

    Raises:
        OptionError: the list is not each of them once.
    """
    if order == "given":
        return list(range(len(names)))
    if order == "drawn":
        return torch.randperm(len(names), generator=generator(what, seed)).tolist()
    if isinstance(order, NumpyOrder):
        return order.of(len(names))
    unknown = [one for one in order if isinstance(one, str) and one not in names]
    if unknown:
        raise OptionError(f"there is no {unknown[0]!r}{suggestion(unknown[0], names)}", what)
    found = [list(names).index(one) if isinstance(one, str) else one for one in order]
    if sorted(found) != list(range(len(names))):
        raise OptionError(f"list each of the {len(names)} once: {', '.join(names[:20])}", what)
    return found


def even_sizes(n: int, n_tasks: int, what: str = "classes") -> list[int]:
    """n things in n_tasks heaps, the first ones larger where it does not divide.

    Raises:
        OptionError: there are fewer things than heaps.
    """
    if not 0 < n_tasks <= n:
        raise OptionError(f"{n_tasks} tasks cannot be cut from {n} {what}", "n_tasks")
    return [n // n_tasks + (i < n % n_tasks) for i in range(n_tasks)]


def assemble(data: Dataset, cut: Cut, setting: Setting, *, rows_may_repeat: bool = False, **told: bool) -> Scenario:
    """Fetch the samples; ``told`` are fields of `Scenario`."""
    return Scenario(
        tuple(_task(data, draft, cut.changes) for draft in cut.drafts),
        cut.class_names,
        task_known_at_test=setting == "task-incremental",
        held_back=None if cut.held_back is None else _task(data, cut.held_back, None),
        tokenizer=data.tokenizer,
        scores=data.scores,
        rows_may_repeat=rows_may_repeat or data.rows_may_repeat,
        **told,
    )


def split(
    data: Dataset, *, setting: Setting, n_tasks: int, seed: int, held_back: int = 0, class_order: Order = "drawn"
) -> Scenario:
    """Tasks of different classes, as evenly as they divide; by default the seed draws the order of the classes.

    Raises:
        OptionError: there are fewer classes than tasks, a domain-incremental cut is uneven, or chunks are asked for.
    """
    tasks = cut(data, seed, setting, "class", n_tasks, class_order=class_order, held_back=held_back)
    return assemble(data, tasks, setting)


def domains(data: Dataset, changes: DomainChanges, setting: Setting) -> Scenario:
    """The same data in every task, changed in a way of its own; a name and a function (N, ...) -> (N, ...) each.

    Raises:
        OptionError: chunks are asked for.
    """
    _refuse_chunks(setting, "transform")
    return assemble(data, by_transform(data, setting, changes), setting)


def _task(data: Dataset, draft: Draft, changes: DomainChanges | None) -> Task:
    train, test = _samples(data.train, draft.train, changes), _samples(data.test, draft.test, changes)
    labels = torch.cat([train.y, test.y]).unique().tolist()
    validation = None if draft.validation is None else _samples(data.train, draft.validation, changes)
    return Task(draft.name, train, test, tuple(labels), validation)


def _samples(samples: Samples, part: StreamRows, changes: DomainChanges | None) -> Samples:
    if changes is None:
        return Samples(samples.x[part.rows], part.y)
    functions = list(changes.values())
    mine = part.change.unique().tolist()
    changed = {i: functions[i](samples.x[part.rows[part.change == i]]) for i in mine}
    if len(mine) == 1:
        return Samples(changed[mine[0]], part.y)
    x = next(iter(changed.values()))
    x = x.new_empty((len(part.rows), *x.shape[1:]))
    for i, some in changed.items():
        x[part.change == i] = some
    return Samples(x, part.y)
