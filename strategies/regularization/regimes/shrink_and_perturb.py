"""Shrink and perturb: Ash & Adams 2020, On Warm-Starting Neural Network Training, https://arxiv.org/abs/1910.08475.

The paper's noise has one width for all weights; the authors' code (https://github.com/JordanAsh/warm_start, whose
defaults these are) adds a part of a network that starts anew, so each tensor has noise of its own width. Here that is
the spread that the tensor had when the stream began. Gains and shifts of normalisation layers stay as they are, where
that code shrinks them too. So do rows of new classes and heads of single tasks, which nothing has trained or will.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regime
from forgetlab.toolbox.fisher import trainable


@register("regime", "shrink_and_perturb")
class ShrinkAndPerturb(Regime):
    """theta <- shrink * theta + perturb * s * e, e ~ N(0, 1), before each task but the first."""

    kept: ClassVar[tuple[str, ...]] = ("spread", "rows")
    neutral: ClassVar[Mapping[str, Any]] = {"shrink": 1.0, "perturb": 0.0}

    def __init__(self, shrink: Annotated[float, Field(ge=0, le=1)] = 0.4, perturb: NonNegativeFloat = 0.1) -> None:
        super().__init__()
        self.shrink, self.perturb = shrink, perturb
        self.spread: dict[str, Tensor] = {}  # s, by tensor
        self.rows: dict[str, Tensor] = {}  # of each tensor, how many were trained so far

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        weights, draws = moving(model), self.draws()
        if not self.tasks:
            self.spread = {name: theta.std(correction=0) for name, theta in weights.items()}
        for name, theta in weights.items() if self.tasks else ():
            old = theta[: int(self.rows.get(name, 0))]
            noise = torch.randn(old.shape, generator=draws, dtype=old.dtype).to(old.device)
            old.mul_(self.shrink).add_(noise * self.spread.get(name, 0), alpha=self.perturb)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self.rows = {name: torch.tensor(len(theta)) for name, theta in moving(model).items()}


def moving(model: nn.Module) -> dict[str, Tensor]:
    """What is shrunk, by name."""
    normal = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
    stay = {id(p) for layer in normal for p in layer.parameters(recurse=False)}
    if isinstance(heads := getattr(model, "head", None), nn.ModuleDict):  # one for each task
        stay |= {id(p) for p in heads.parameters()}
    return {name: torch.atleast_1d(p.detach()) for name, p in trainable(model) if id(p) not in stay}
