"""Regularization: a penalty that keeps the model near what it knew.

A method is a final subclass of `Regularizer`: the penalty, and what is learned at a task's end to compute it. The
contract owns Avalanche's hooks, so a regularizer also runs in an Avalanche script.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.avalanche_api import MultiTaskModule, SupervisedPlugin, avalanche_forward
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.data import batches

__all__ = ["UNKNOWN", "Batch", "Regularizer", "answers", "frozen_copy", "logits", "padded", "quadratic"]


class Regularizer(SupervisedPlugin, ABC):
    """Adds strength * penalty to the loss from the second task on."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})  # "passes" too where `consolidate` reads its data
    kept: ClassVar[tuple[str, ...]] = ()  # attributes that the next task needs: tensors by name, or plain values

    def __init__(self, strength: NonNegativeFloat) -> None:
        super().__init__()
        self.strength = strength
        self.seed = 0
        self.tasks = 0  # consolidated so far

    @abstractmethod
    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        """A scalar, before it is multiplied by the strength; asked for from the second task on."""

    @abstractmethod
    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        """Learn what the penalty needs, at a task's end, from that task's training data."""

    def begin(self, model: nn.Module) -> None:
        """Called before a task's first step, when the model has grown for it."""

    def observe(self, model: nn.Module, loss: Tensor) -> None:
        """Called after each step, while the gradients are still there."""

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

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.tasks:
            fields = strategy.mbatch
            batch = Batch(fields[0], fields[1], fields[-1] if len(fields) > 2 else torch.zeros_like(fields[1]))
            strategy.loss = strategy.loss + self.strength * self.penalty(strategy.model, batch, strategy.mb_output)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.observe(strategy.model, strategy.loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        was_training = strategy.model.training
        strategy.model.eval()
        data = batches(strategy.experience.dataset, strategy.train_mb_size, strategy.device)
        self.consolidate(strategy.model, data)
        strategy.model.train(was_training)
        self.tasks += 1


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
