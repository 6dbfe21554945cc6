"""A multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.plugins.registry import register


@register("model", "mlp")
class MLP(nn.Module):
    """Fully connected layers with ReLU; the features are the last hidden layer."""

    def __init__(self, input_shape: tuple[int, ...], hidden: tuple[PositiveInt, ...] = (400, 400)) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(widths))
        self.n_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, hidden[-1])"""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x
