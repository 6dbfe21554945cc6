"""A data set made into a sequence of tasks: cuts, modifiers, and whether the result is sound."""

from forgetlab.streams.build import (
    TASKS,
    By,
    FewShot,
    NumpyOrder,
    Order,
    assemble,
    cut,
    domains,
    even_sizes,
    ordered,
    refuse_beside_told_tasks,
    split,
)
from forgetlab.streams.modifiers import modified
from forgetlab.streams.scenario import DomainChanges, Scenario, Setting, Task, pretraining_tasks

__all__ = [
    "TASKS",
    "By",
    "DomainChanges",
    "FewShot",
    "NumpyOrder",
    "Order",
    "Scenario",
    "Setting",
    "Task",
    "assemble",
    "cut",
    "domains",
    "even_sizes",
    "modified",
    "ordered",
    "pretraining_tasks",
    "refuse_beside_told_tasks",
    "split",
]
