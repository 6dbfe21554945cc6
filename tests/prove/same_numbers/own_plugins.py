"""A model and a module as a researcher's own file brings them; it imports what the README tells to import."""

import math

import torch
from torch import nn

from forgetlab.isolation import Isolation, Role
from forgetlab.plugins import register


@register("model", "own_model")
class OwnModel(nn.Module):
    """One hidden layer."""

    def __init__(self, input_shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(math.prod(input_shape), width)
        self.n_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden(x.flatten(1)).relu()


class ScaleShift(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))


@register("isolation", "own_module")
class OwnModule(Isolation):
    """y = gamma * x + beta after each site."""

    def __init__(self, sites: tuple[Role, ...] = ("mlp.in",)) -> None:
        super().__init__(sites)

    def make(self, site):
        return ScaleShift(site.out_dim)

    def after(self, part, site, x, y):
        return part.scale * y + part.shift
