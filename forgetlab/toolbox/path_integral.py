"""The weights' way through training: how far each went, and what its own steps took off the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forgetlab.toolbox.fisher import trainable
from forgetlab.toolbox.teacher import padded


class Walk:
    """A stretch of steps, by parameter: its start, its last point, and its gain, the sum of -g dtheta.

    ``score`` sums what is gained by distance over all stretches, on top of an old one where that is given.
    """

    def __init__(self, model: nn.Module, score: Mapping[str, Tensor]) -> None:
        self.steps = 0  # of all stretches
        self.start = {name: p.detach().clone() for name, p in trainable(model)}
        self.last = {name: theta.clone() for name, theta in self.start.items()}
        self.gain = {name: torch.zeros_like(theta) for name, theta in self.start.items()}
        self.score = {name: padded(score.get(name, theta[:0]), theta).clone() for name, theta in self.start.items()}

    def step(
        self, model: nn.Module, strength: float, weight: Mapping[str, Tensor], centre: Mapping[str, Tensor]
    ) -> None:
        """Called after a step, while its gradients are there.

        g is without the pull of strength * sum_i weight_i (theta_i - centre_i)^2: the way back there is no learning.
        """
        self.steps += 1
        for name, parameter in trainable(model):
            if parameter.grad is None:
                continue
            last, theta, gradient = self.last[name], parameter.detach(), parameter.grad
            if name in weight:
                away = last[: len(centre[name])] - centre[name]
                gradient = gradient - padded(2 * strength * weight[name] * away, gradient)
            self.gain[name] -= gradient * (theta - last)
            last.copy_(theta)

    def arrive(self, fisher: Mapping[str, Tensor], damping: float) -> None:
        """End the stretch: score += max(0, gain) / (F dtheta^2 / 2 + damping); the next starts here."""
        for name, last in self.last.items():
            distance = fisher[name] * (last - self.start[name]) ** 2 / 2
            self.score[name] += self.gain[name].clamp(min=0) / (distance + damping)
            self.start[name].copy_(last)
            self.gain[name].zero_()


def scaled(*parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of importances by parameter, each divided by its largest value over all of them first."""
    tops = [max([float(values.max()) for values in part.values()], default=0.0) or 1.0 for part in parts]
    names = parts[0] if parts else ()
    return {
        name: torch.stack([part[name] / top for part, top in zip(parts, tops, strict=True)]).sum(0) for name in names
    }
