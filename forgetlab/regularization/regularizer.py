"""The contract of penalties: a term beside the loss that holds old knowledge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from forgetlab.batch import Batch
from forgetlab.regularization.keeper import Keeper, Tensors
from forgetlab.toolbox.teacher import padded


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
