"""Regularization: what keeps the model near what it knew.

A method is a final subclass of `Regularizer` (a penalty, and what is learned at a task's end to compute it), of
`Projection` (a constraint on each step's gradient) or of `Regime` (rates, and what is done to the weights between
tasks). The contracts own Avalanche's hooks, so each also runs in an Avalanche script.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.avalanche_api import MultiTaskModule, SupervisedPlugin, avalanche_forward
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.data import batches
from forgetlab.seeding import generator

__all__ = [
    "UNKNOWN",
    "Batch",
    "Keeper",
    "Projection",
    "Regime",
    "Regularizer",
    "Tensors",
    "answers",
    "frozen_copy",
    "logits",
    "padded",
    "quadratic",
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

    def begin(self, model: nn.Module) -> None:
        """Called before a task's first step, when the model has grown for it."""

    def observe(self, model: nn.Module, loss: Tensor) -> None:
        """Called after each step, while the gradients are still there."""

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        """Learn what the next tasks need, at a task's end, from that task's training data."""

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

    @abstractmethod
    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        """A scalar, before it is multiplied by the strength."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.tasks or self.from_start:
            fields = strategy.mbatch
            batch = Batch(fields[0], fields[1], fields[-1] if len(fields) > 2 else torch.zeros_like(fields[1]))
            strategy.loss = strategy.loss + self.strength * self.penalty(strategy.model, batch, strategy.mb_output)


class Projection(Keeper):
    """Changes each step's gradient so that what was learned is not undone.

    ``references`` says which gradients on remembered samples it asks for: "none", that on one "mixed" batch of all old
    tasks, or that on each of the old "tasks". Those it has from a ``memory``, so it stands beside one in a file.
    """

    references: ClassVar[Literal["none", "mixed", "tasks"]] = "none"

    def __init__(self) -> None:
        super().__init__()
        self.memory: Any = None  # a forgetlab.replay.Memory, where references are asked for
        self._generator = generator("projection", self.seed, 0)

    @abstractmethod
    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        """The gradient of a step instead of the one at hand; ``references`` may be empty, as in the first task."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        self._generator = generator("projection", self.seed, strategy.clock.train_exp_counter)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        moving = {name: p for name, p in strategy.model.named_parameters() if p.grad is not None}
        gradient = {name: p.grad for name, p in moving.items()}
        references = [self._gradient(strategy, moving, batch) for batch in self._remembered(strategy)]
        for name, projected in self.project(gradient, references).items():
            moving[name].grad = projected

    def _remembered(self, strategy: Any) -> Iterable[Batch]:
        """The batches on which references are taken, of tasks that ended."""
        if self.references == "none" or not self.tasks:
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

    def rate(self, name: str, task: int) -> float:
        """The factor on a parameter's learning rate in this task."""
        return 1.0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        names = {p: name for name, p in strategy.model.named_parameters()}
        groups: list[dict[str, Any]] = []
        for group in strategy.optimizer.param_groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_rate.setdefault(self.rate(names[p], self.tasks), []).append(p)
            groups += [{**group, "params": ps, "lr": group["lr"] * factor} for factor, ps in by_rate.items()]
        strategy.optimizer.param_groups = groups


def quadratic(model: nn.Module, weight: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> Tensor:
    """sum_i weight_i (theta_i - centre_i)^2 by parameter name; rows that a parameter has grown by since are free."""
    theta = dict(model.named_parameters())
    triples = [(theta[name], its_weight, centre[name]) for name, its_weight in weight.items()]
    return _Quadratic.apply(*(tensor for column in zip(*triples, strict=True) for tensor in column))


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


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's answer, with the tasks where the model takes them. -> (B, classes)"""
    return avalanche_forward(model, batch.x, batch.task)


def answers(model: nn.Module, x: Tensor, output: Tensor | None = None) -> dict[int, Tensor]:
    """The logits by the task that is asked about, or {UNKNOWN: logits} where no task is told; one backbone pass.

    No class that a task had is masked in its answer. ``output`` is what the model gave for these samples in training;
    it is taken where it is the answer already.
    """
    if isinstance(model, MultiTaskModule) and getattr(model, "task_known", True):
        return avalanche_forward(model, x, None)
    if output is not None and getattr(model, "loss_classes", "all") != "current":
        return {UNKNOWN: output}
    return {UNKNOWN: avalanche_forward(model, x, torch.full((len(x),), UNKNOWN, device=x.device))}


def frozen_copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model as it was when it had these tensors, in evaluation mode, without gradients."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    own = frozen.state_dict()
    frozen.load_state_dict({**own, **{name: padded(t, own[name]) for name, t in tensors.items()}})
    return frozen


def padded(tensor: Tensor, like: Tensor) -> Tensor:
    """Zeros for the rows by which a parameter has grown since; the rows that there were stay first."""
    if tensor.shape == like.shape:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(len(like) - len(tensor), *tensor.shape[1:])])
