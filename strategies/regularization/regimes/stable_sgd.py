"""Stable SGD: Mirzadeh, Farajtabar, Pascanu & Ghasemzadeh 2020, Understanding the Role of Training Regimes in Continual
Learning, https://arxiv.org/abs/2006.06958.

A large first rate that falls from task to task, dropout and small batches lead to flat minima, which later tasks leave
less: the first rate and the batch are the file's `train`. Dropout is on what leaves each block of the backbone, after
the ReLU of an MLP as in the paper. The authors' code (https://github.com/imirzadeh/stable-continual-learning) lowers
the first task's rate too, stops at 5e-5, and drops at test as well in its MLP; defaults: its permuted MNIST.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins import register
from forgetlab.regularization import Regime, layers


@register("regime", "stable_sgd")
class StableSGD(Regime):
    """The rate of task t, counted from 0, is rate * decay^t; units of hidden layers are dropped in training."""

    neutral: ClassVar[Mapping[str, Any]] = {"decay": 1.0, "dropout": 0.0}

    def __init__(
        self,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.8,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        super().__init__()
        self.decay, self.dropout = decay, dropout

    def check(self, model: nn.Module) -> None:
        if self.dropout:
            layers(model)

    def rate(self, name: str, task: int) -> float:
        return self.decay**task

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        handles = [layer.register_forward_hook(self._drop) for layer in layers(model)] if self.dropout else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _drop(self, layer: nn.Module, entered: object, left: Tensor | tuple[Tensor, ...]) -> object:
        if isinstance(left, tuple):  # of transformers: the sequence, and what else
            return (F.dropout(left[0], self.dropout), *left[1:])
        return F.dropout(left, self.dropout)
