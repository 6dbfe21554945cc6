"""Gaussian feature replay: Zhu et al. 2021, Class-Incremental Learning via Dual Augmentation (IL2A).

https://openreview.net/forum?id=8dqEeFuhgMG. It keeps a mean and a covariance a class (and task, where tasks are told).
Features drawn from them train the head; IL2A bounds their expected loss. They age as the backbone moves: it should be
frozen or slow (`regularization: slca`). `covariance: shared` is one within all classes, as in SLDA, Hayes & Kanan 2020.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor, nn

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory
from forgetlab.toolbox import gaussians
from forgetlab.toolbox.teacher import features

MANY = 2**20  # classes: a class of a told task has the number (task + 1) * MANY + class


@register("memory", "gaussian")
class Gaussian(Memory):
    """Drawn are a class, each as likely as another, and features from N(mu, (1 - s) Sigma + s tr(Sigma) / d I)."""

    needs, has_slots, inside = frozenset({"boundaries", "passes"}), False, True
    kept = ("known", "within")

    def __init__(
        self,
        ratio: PositiveFloat = 1.0,
        covariance: Literal["class", "shared"] = "class",
        shrinkage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0,  # s
    ) -> None:
        super().__init__(1, ratio)
        self.shared, self.shrinkage = covariance == "shared", shrinkage
        self.known, self.within = dict[str, Tensor](), dict[str, Tensor]()
        self.factors: list[Tensor] = []  # of the covariances, to draw by

    def __len__(self) -> int:
        return len(gaussians.labels(self.known))

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        """Nothing: features are those of the task's end."""

    @torch.no_grad()
    def end(self, model: nn.Module, data: Iterable[Batch], generator: Generator) -> None:
        told, self.factors = getattr(model, "task_known", False), []
        for batch in data:
            gaussians.add(self.known, features(model, batch.x), batch.y + told * MANY * (batch.task + 1))
            if self.shared:
                gaussians.pool(self.known, self.within)

    def sample(self, n: int, generator: Generator) -> Batch:
        self.factors = self.factors or gaussians.factors(self.known, self.within, self.shrinkage)
        x, number = gaussians.drawn(self.known, self.factors, n, generator)
        return Batch(x, number % MANY, number // MANY - 1)
