"""How the learning rate moves within a task, by torch's own schedulers; and the step that may be clipped before.

A schedule starts anew with every task. It moves once an epoch under ``budget: {epochs}`` and once an optimizer step
under ``{updates}``; with a warm-up, which is a share of the task's steps, at every step in either case, and the epochs
of ``at`` are then counted in steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from forgetlab.experiment import Schedule


class Rates:
    """The rates of one task's optimizer, moved as its schedule says."""

    def __init__(
        self, schedule: Schedule, optimizer: Optimizer, *, steps: int, epochs: int | None, stretch: float = 1.0
    ) -> None:
        """
        Args:
            steps: optimizer steps of the task.
            epochs: of the task, where its budget is in epochs; None where it is in updates.
            stretch: steps for each unit that ``at`` counts, where the budget is in updates: a model that learns several
                tasks at once has more of them, and its rate falls after the same share of its way.
        """
        self.by_epoch = epochs is not None and schedule.warmup is None
        units = epochs if epochs is not None and self.by_epoch else steps
        per_unit = stretch if epochs is None else 1 if self.by_epoch else steps // epochs  # of what ``at`` counts
        warm = 0 if schedule.warmup is None else max(1, round(schedule.warmup * steps))
        if warm == 0:
            self.scheduler = _plain(schedule, optimizer, units, 0, per_unit)
        else:
            # The rate of step k = 0, 1, ... is (k + 1) / (warm + 1) of the whole: never 0, and whole after ``warm``.
            rising = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
            then = _plain(schedule, optimizer, units, warm, per_unit)
            self.scheduler = SequentialLR(optimizer, [rising, then], milestones=[warm])

    def after_step(self) -> None:
        if not self.by_epoch:
            self.scheduler.step()

    def after_epoch(self) -> None:
        if self.by_epoch:
            self.scheduler.step()


def _plain(schedule: Schedule, optimizer: Optimizer, units: int, warm: int, per_unit: float) -> LRScheduler:
    """The schedule after ``warm`` steps of warm-up."""
    if schedule.name == "steps":
        milestones = [max(round(at * per_unit) - warm, 0) for at in schedule.at or ()]
        return MultiStepLR(optimizer, milestones, gamma=schedule.factor or 0.1)
    if schedule.name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=max(units - warm, 1), eta_min=schedule.end or 0.0)
    return LambdaLR(optimizer, lambda _: 1.0)


def clipped_step(optimizer: Optimizer, norm: float) -> None:
    """A step along the gradient, shortened to this norm over all parameters where it is longer.

    The gradients themselves are left as they were: what reads them after a step (a path integral) wants the loss's own.
    """
    held = [p for p in _parameters(optimizer) if p.grad is not None]
    whole = [p.grad for p in held]
    for parameter in held:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.clone()
    clip_grad_norm_(held, norm)
    optimizer.step()
    for parameter, gradient in zip(held, whole, strict=True):
        parameter.grad = gradient


def _parameters(optimizer: Optimizer) -> Iterable[torch.Tensor | nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
