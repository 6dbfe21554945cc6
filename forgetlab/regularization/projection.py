"""The contract of gradient constraints: each step's gradient is changed so that what was learned is not undone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from forgetlab.backbones.batch_norm import kept_statistics_for_one
from forgetlab.batch import Batch
from forgetlab.regularization.keeper import Keeper, Tensors
from forgetlab.seeding import generator
from forgetlab.toolbox.teacher import logits


class Projection(Keeper):
    """Changes each step's gradient so that what was learned is not undone.

    ``references`` says which gradients on remembered samples it asks for: "none", that on one "mixed" batch of all old
    tasks, or that on each of the old "tasks". Those it has from a ``memory``, so it stands beside one in a file. What
    has no gradient in a step, such as an old task's head, has one of 0, and moves only where the projection moves it.
    """

    references: ClassVar[Literal["none", "mixed", "tasks"]] = "none"

    def __init__(self) -> None:
        super().__init__()
        self.memory: Any = None  # a forgetlab.replay.memory.Memory, where references are asked for
        self._generator = generator("projection", self.seed, 0)

    @abstractmethod
    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        """The gradient of a step instead of the one at hand, from the second task on; ``references`` may be empty."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        self._generator = generator("projection", self.seed, strategy.clock.train_exp_counter)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        if not self.tasks:
            return
        moving = {name: p for name, p in strategy.model.named_parameters() if p.requires_grad}
        gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in moving.items()}
        references = [self._gradient(strategy, moving, batch) for batch in self._remembered(strategy)]
        for name, projected in self.project(gradient, references).items():
            if moving[name].grad is not None or bool(projected.any()):
                moving[name].grad = projected

    def _remembered(self, strategy: Any) -> Iterable[Batch]:
        """The batches on which references are taken, of tasks that ended."""
        if self.references == "none":
            return []
        if self.references == "mixed":
            return self.memory.recalled(self._generator)
        return self.memory.by_task()

    def _gradient(self, strategy: Any, moving: Mapping[str, nn.Parameter], batch: Batch) -> Tensors:
        with kept_statistics_for_one(strategy.model, len(batch.y)):
            loss = strategy._criterion(logits(strategy.model, batch), batch.y)
        found = torch.autograd.grad(loss, [*moving.values()], allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(moving.items(), found, strict=True)}
