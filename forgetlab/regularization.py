"""Regularization: what keeps the model near what it knew.

A method is a final subclass of `Regularizer` (a penalty, and what is learned at a task's end to compute it), of
`Projection` (a constraint on each step's gradient) or of `Regime` (rates, and what is done to the weights between
tasks). The contracts own Avalanche's hooks, so each also runs in an Avalanche script.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Generator, Tensor, nn

from forgetlab import gaussians
from forgetlab.avalanche_api import SupervisedPlugin
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.competing_classes import classes_at_test
from forgetlab.data import batches
from forgetlab.seeding import generator
from forgetlab.sites import blocks
from forgetlab.subspaces import chosen, entering, nonnegative, true_logit_gradients
from forgetlab.teacher import answers, changing, features, frozen_copy, logits, padded
from forgetlab.walk import Walk, scaled

__all__ = [
    "UNKNOWN",
    "Batch",
    "Keeper",
    "Projection",
    "Regime",
    "Regularizer",
    "Tensors",
    "Walk",
    "answers",
    "changing",
    "chosen",
    "classes_at_test",
    "entering",
    "features",
    "frozen_copy",
    "gaussians",
    "layers",
    "logits",
    "mixed",
    "nonnegative",
    "padded",
    "quadratic",
    "scaled",
    "true_logit_gradients",
]


Tensors = dict[str, Tensor]  # by parameter name


class Keeper(SupervisedPlugin, ABC):
    """What is learned at a task's end and kept for the next."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})  # "passes" too where `consolidate` reads its data
    kept: ClassVar[tuple[str, ...]] = ()  # attributes that the next task needs: tensors by name, or plain values

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.tasks = 0  # consolidated so far

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this cannot act on; called before anything is trained.

        Raises:
            OptionError: with the reason.
        """

    def begin(self, model: nn.Module) -> None:
        """Called before a task's first step, when the model has grown for it."""

    def observe(self, model: nn.Module, loss: Tensor) -> None:
        """Called after each step, while the gradients are still there."""

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        """Learn what the next tasks need, at a task's end, from that task's training data."""

    def draws(self) -> Generator:
        """The generator for what is drawn in this task."""
        return generator(type(self).__name__, self.seed, self.tasks)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept: tensors and plain values."""
        kept = {name: getattr(self, name) for name in ("tasks", *self.kept)}
        named = {part: values for part, values in kept.items() if isinstance(values, dict)}
        tensors = {f"{part}/{name}": tensor for part, values in named.items() for name, tensor in values.items()}
        return tensors, {name: value for name, value in kept.items() if name not in named}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name in self.kept:
            setattr(self, name, values.get(name, {}))
        for path, tensor in tensors.items():
            part, name = path.split("/", 1)
            getattr(self, part)[name] = tensor
        self.tasks = values["tasks"]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.check(strategy.model)
        self.begin(strategy.model)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.observe(strategy.model, strategy.loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        was_training = strategy.model.training
        strategy.model.eval()
        data = batches(strategy.experience.dataset, strategy.train_mb_size, strategy.device)
        self.consolidate(strategy.model, data)
        strategy.model.train(was_training)
        self.tasks += 1


class Regularizer(Keeper):
    """Adds strength * penalty to the loss from the second task on."""

    from_start: ClassVar[bool] = False  # whether the first task is penalised too

    def __init__(self, strength: NonNegativeFloat) -> None:
        super().__init__()
        self.strength = strength
        self.batch: Batch  # of the step at hand, in the first task too

    @abstractmethod
    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        """A scalar, before it is multiplied by the strength."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        fields = strategy.mbatch
        self.batch = Batch(fields[0], fields[1], fields[-1] if len(fields) > 2 else torch.zeros_like(fields[1]))
        if self.tasks or self.from_start:
            penalty = self.penalty(strategy.model, self.batch, strategy.mb_output)
            strategy.loss = strategy.loss + self.strength * penalty


class Projection(Keeper):
    """Changes each step's gradient so that what was learned is not undone.

    ``references`` says which gradients on remembered samples it asks for: "none", that on one "mixed" batch of all old
    tasks, or that on each of the old "tasks". Those it has from a ``memory``, so it stands beside one in a file. What
    has no gradient in a step, such as an old task's head, has one of 0, and moves only where the projection moves it.
    """

    references: ClassVar[Literal["none", "mixed", "tasks"]] = "none"

    def __init__(self) -> None:
        super().__init__()
        self.memory: Any = None  # a forgetlab.replay.Memory, where references are asked for
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
        loss = strategy._criterion(logits(strategy.model, batch), batch.y)
        found = torch.autograd.grad(loss, [*moving.values()], allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(moving.items(), found, strict=True)}


class Regime(Keeper):
    """How training goes: a parameter's rate, and what is done to the weights before, between and after steps.

    `begin` comes before a task's first step, `observe` after each, `consolidate` at the task's end.
    """

    neutral: ClassVar[Mapping[str, Any]] = {}  # the options with which it changes nothing

    def __init__(self) -> None:
        super().__init__()
        self._around = ExitStack()

    def rate(self, name: str, task: int) -> float:
        """The factor on a parameter's learning rate in this task."""
        return 1.0

    def around(self, model: nn.Module) -> AbstractContextManager[Any]:
        """What stands around the forward pass of each training step: hooks in it are on no copy of the model."""
        return nullcontext()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        names = {p: name for name, p in strategy.model.named_parameters()}
        self._groups = strategy.optimizer.param_groups
        groups: list[dict[str, Any]] = []
        for group in self._groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_rate.setdefault(self.rate(names[p], self.tasks), []).append(p)
            groups += [{**group, "params": ps, "lr": group["lr"] * factor} for factor, ps in by_rate.items()]
        strategy.optimizer.param_groups = groups

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._around.close()  # what a pass that was interrupted left
        self._around.enter_context(self.around(strategy.model))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._around.close()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.optimizer.param_groups = self._groups  # where an optimizer is kept, rates do not build up
        super().after_training_exp(strategy, **kwargs)


def layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model's backbone, first to last; of the frozen one where a module is trained on it.

    Raises:
        OptionError: where they are is not known.
    """
    backbone: Any = getattr(model, "backbone", model)
    return blocks(getattr(backbone, "backbone", backbone))


def quadratic(model: nn.Module, weight: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> Tensor:
    """sum_i weight_i (theta_i - centre_i)^2 by parameter name; rows that a parameter has grown by since are free."""
    theta = dict(model.named_parameters())
    triples = [(theta[name], its_weight, centre[name]) for name, its_weight in weight.items()]
    return _Quadratic.apply(*(tensor for column in zip(*triples, strict=True) for tensor in column))


def mixed(old: Mapping[str, Tensor], keep: float, new: Mapping[str, Tensor], take: float) -> Tensors:
    """keep * old + take * new, by the new ones' names; what was not there yet was 0."""
    return {name: keep * padded(old.get(name, value[:0]), value) + take * value for name, value in new.items()}


class _Quadratic(torch.autograd.Function):
    """All theta, then all weights, then all centres; in every step autograd would go over them twice as often."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        n = len(tensors) // 3
        theta, weight, centre = tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
        difference = [t[: len(c)] - c for t, c in zip(theta, centre, strict=True)]
        pull = [w * d for w, d in zip(weight, difference, strict=True)]
        ctx.save_for_backward(*theta, *pull)
        return torch.stack([torch.dot(p.flatten(), d.flatten()) for p, d in zip(pull, difference, strict=True)]).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.saved_tensors) // 2
        theta, pull = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        gradient = (padded(2 * grad_outputs[0] * p, t) for p, t in zip(pull, theta, strict=True))
        return *gradient, *[None] * (2 * n)
