"""SLCA: Zhang et al. 2023, Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model,
https://arxiv.org/abs/2303.05118. Defaults: the authors' code, https://github.com/GengDavid/SLCA. It trains with
`loss_classes: current`; its pull of old means towards 0 is left out. What is known of a class grows with d^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from forgetlab.plugins import OptionError, register
from forgetlab.regularization import Batch, Regime
from forgetlab.toolbox import gaussians


@register("regime", "slca")
class SLCA(Regime):
    """The backbone learns slowly, then the head all classes' N(mu, Sigma) by z / (T |z|), |z| a mean over tasks."""

    # the authors' code trains on the new classes' logits alone
    paper_protocol: ClassVar[Mapping[str, Any]] = {"loss_classes": "current"}
    needs, kept, neutral = frozenset({"boundaries", "passes"}), ("known",), {"slow": 1.0, "epochs": 0}

    def __init__(
        self,
        slow: NonNegativeFloat = 0.01,
        epochs: NonNegativeInt = 5,  # of the alignment
        lr: PositiveFloat = 0.01,
        samples: PositiveInt = 256,  # of each class in an epoch, and of all in a step
        temperature: PositiveFloat | None = 0.1,  # T; none: z as it is
    ) -> None:
        super().__init__()
        self.slow, self.epochs, self.lr, self.samples, self.temperature = slow, epochs, lr, samples, temperature
        self.known: gaussians.Known = {}

    def check(self, model: nn.Module) -> None:
        if not hasattr(model, "backbone") or isinstance(getattr(model, "head", model), nn.ModuleDict):
            raise OptionError("it aligns the classes of one head on a backbone; no task can have a head of its own")

    def rate(self, name: str, task: int) -> float:
        return self.slow if name.startswith("backbone.") else 1.0

    def consolidate(self, model: Any, data: Iterable[Batch]) -> None:
        for batch in data if self.epochs else ():
            gaussians.add(self.known, model.backbone(batch.x).detach(), batch.y)
        draws, optimizer = self.draws(), torch.optim.SGD(model.head.parameters(), momentum=0.9, weight_decay=5e-4)
        for epoch in range(self.epochs if self.tasks else 0):
            optimizer.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            for x, y in gaussians.drawn_batches(self.known, self.samples, self.samples, draws):
                optimizer.zero_grad()
                self.loss(model.head(x), y, model.classes_of).backward()
                optimizer.step()

    def loss(self, z: Tensor, y: Tensor, classes_of: Mapping[int, list[int]]) -> Tensor:
        sets = [*map(tuple, classes_of.values())]  # tasks that share their classes share their norm
        norm = sum(sets.count(one) * z[:, one].norm(dim=1, keepdim=True) for one in dict.fromkeys(sets)) / len(sets)
        z = z if self.temperature is None else z / (self.temperature * norm)
        return (z[:, gaussians.labels(self.known)].logsumexp(1) - z.gather(1, y.unsqueeze(1)).squeeze(1)).mean()
