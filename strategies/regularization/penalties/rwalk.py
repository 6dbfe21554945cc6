"""RWalk: Chaudhry et al. 2018, Riemannian Walk for Incremental Learning, https://arxiv.org/abs/1801.10112.

After each delta_t steps and at a task's end F <- alpha F' + (1 - alpha) F, F' exact per sample on the last batch, and
s += max(0, gain) / (F dtheta^2 / 2 + damping), the gain being sum -g dtheta; s is averaged with the last task's. The
authors' code squares batch means and lets the gain run on; defaults (strength: MNIST) and F = 0 at first are its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer, Tensors, Walk, mixed, quadratic, scaled
from forgetlab.toolbox.fisher import Variant, fisher, trainable


@register("regularizer", "rwalk")
class RWalk(Regularizer):
    """strength * sum_i (F_i + s_i) (theta_i - theta~_i)^2, F and s each scaled to a largest value of 1."""

    kept: ClassVar[tuple[str, ...]] = ("fisher", "score", "anchor")  # F, s, theta~

    def __init__(
        self,
        strength: NonNegativeFloat = 1.0,
        alpha: Annotated[float, Field(gt=0, le=1)] = 0.9,
        delta_t: PositiveInt = 10,
        damping: PositiveFloat = 1e-3,
        fisher: Variant = "empirical",
    ) -> None:
        super().__init__(strength)
        self.alpha, self.delta_t, self.damping = alpha, delta_t, damping
        self.variant: Variant = fisher
        self.fisher, self.score, self.anchor = Tensors(), Tensors(), Tensors()

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return quadratic(model, self.weight, self.anchor)

    def begin(self, model: nn.Module) -> None:
        self.walk, self.running, self.weight = Walk(model, self.score), self.fisher, scaled(self.fisher, self.score)

    def observe(self, model: nn.Module, loss: Tensor) -> None:
        self.walk.step(model, self.strength, self.weight, self.anchor)
        if self.walk.steps % self.delta_t == 0:
            self._arrive(model)

    def _arrive(self, model: nn.Module) -> None:
        new = fisher(model, [self.batch], self.variant, self.seed)
        self.running = mixed(self.running, 1 - self.alpha, new, self.alpha)
        self.walk.arrive(self.running, self.damping)

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        self._arrive(model)
        self.fisher, self.anchor = self.running, {name: p.detach().clone() for name, p in trainable(model)}
        self.score = {name: score / (2 if self.tasks else 1) for name, score in self.walk.score.items()}
