"""Which classes compete for an answer: the one place that decides it, in a training step and for a test sample.

While training, ``loss_classes`` says it: all classes, those seen so far, or for a sample of the current task that
task's alone. At test the classes of its task compete where the task is told, or a router infers it, else all classes
seen so far. Who may not compete gets `MASK`.

Sizes: B samples in a batch, C classes in an answer, T tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASK = -1e4  # exp(MASK - any logit) is exactly 0 in float32; finite, so that methods that differentiate it see no NaN

LossClasses = Literal["all", "seen", "current"]


def table_of(classes_of: Mapping[int, Collection[int]], width: int) -> Tensor:
    """Which classes each task has. -> (T, width) of bool, T the largest task plus one"""
    table = torch.zeros(max(classes_of) + 1, width, dtype=torch.bool)
    for task, classes in classes_of.items():
        table[task, list(classes)] = True
    return table


def support(
    task: Tensor,
    table: Tensor,
    n_classes: int,
    n_seen: int,
    *,
    task_known: bool,
    loss_classes: LossClasses | None,
    current: int,
) -> Tensor | None:
    """Which classes compete under one head for all tasks. (B,) tasks -> (C,) or (B, C) of bool, or None for all.

    ``table`` (T, C): the classes of each task; ``n_classes``: C, of which the first ``n_seen`` were seen so far;
    ``loss_classes``: None where no loss is taken, at test.
    """
    if task_known:
        return table[task]
    if loss_classes == "all":
        return None
    current_alone = loss_classes == "current"
    if n_classes == n_seen and not current_alone:
        return None
    seen = torch.arange(n_classes, device=task.device) < n_seen
    if current_alone:
        return torch.where((task == current).unsqueeze(1), table[current], seen)
    return seen


def heads_asked(
    tasks: Iterable[int], *, training: bool, current: int, task_known: bool, routed: bool
) -> list[int] | None:
    """The tasks whose heads answer every sample of a batch, their classes side by side, where each task has a head.

    None: each sample is answered by the head of its own task alone, which is told or which a router infers.
    """
    if training:
        return [current]
    if not routed and not task_known:
        return list(tasks)
    return None


def classes_at_test(own: Collection[int], seen: Collection[int], task_known: bool) -> list[int]:
    """The classes among which a test sample is answered: those of its task where that is told, else all seen so far."""
    return sorted(own if task_known else seen)


def all_seen(tested: Collection[int], seen: Collection[int]) -> bool:
    """Whether every class that a task's test samples have may compete yet: else the task has no answer."""
    return {*seen}.issuperset(tested)


def is_told_the_task(model: nn.Module) -> bool:
    """Whether a model for several tasks answers each task among its own classes; one of others' make does."""
    return getattr(model, "task_known", True)


def hides_seen_classes(model: nn.Module) -> bool:
    """Whether the model's answers in training mask classes that it has seen."""
    return getattr(model, "loss_classes", "all") == "current"


def only(logits: Tensor, competing: Tensor | None) -> Tensor:
    """These classes alone compete. (B, C), (C,) or (B, C) of bool, or None for all -> (B, C)"""
    return logits if competing is None else logits.masked_fill(~competing, MASK)


def among(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes of these labels alone compete. (B, C), (n,) -> (B, C)"""
    competing = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    competing[labels] = True
    return only(logits, competing)


def nobody(n: int, width: int, like: Tensor) -> Tensor:
    """Answers in which no class competes yet, of the type and on the device of ``like``. -> (n, width)"""
    return like.new_full((n, width), MASK)


def side_by_side(answers: Mapping[int, Tensor], classes_of: Mapping[int, list[int]], width: int) -> Tensor:
    """Tasks' logits (B, a task's classes) each -> (B, width); a class that several tasks have gets its largest."""
    first = next(iter(answers.values()))
    logits = nobody(len(first), width, first)
    for task, answer in answers.items():
        columns = torch.tensor(classes_of[task], device=answer.device)
        known = logits.index_select(1, columns)
        logits = logits.index_copy(1, columns, torch.maximum(known, answer) if len(answers) > 1 else answer)
    return logits


def widened(logits: Tensor, width: int) -> Tensor:
    """An answer from when there were fewer classes: those that have come since do not compete. (B, C) -> (B, width)"""
    return F.pad(logits, (0, width - logits.shape[-1]), value=MASK)


def competes(logits: Tensor) -> Tensor:
    """Which classes compete in an answer. (B, C) -> (B, C) of bool"""
    return logits > MASK


def handicap(classes: Collection[int], width: int, device: torch.device) -> Tensor:
    """What is added to scores so that these classes alone compete: 0, and MASK for the others. -> (width,) float64

    Added, not put in the scores' place: a closed form's are no logits, and may lie below MASK themselves.
    """
    added = torch.full((width,), MASK, dtype=torch.float64, device=device)
    added[sorted(classes)] = 0
    return added
